"""The published files of this system, for `edg fetch`."""

from __future__ import annotations

from edg.systems.base import RemoteFile

FILES = {
    "dynamicrafter-512": RemoteFile("Doubiiu/DynamiCrafter_512", "model.ckpt", "dynamicrafter_512_v1"),
    "dynamicrafter-1024": RemoteFile("Doubiiu/DynamiCrafter_1024", "model.ckpt", "dynamicrafter_1024_v1"),
    "dynamicrafter-256": RemoteFile("Doubiiu/DynamiCrafter", "model.ckpt", "dynamicrafter_256_v1"),
    "interp-512": RemoteFile("Doubiiu/DynamiCrafter_512_Interp", "model.ckpt", "dynamicrafter_512_interp_v1"),
    "cil-512": RemoteFile("GraceZhao/DynamiCrafter-CIL-512", "timenoise.ckpt", "dynamicrafter_cil_512_v1"),
    "analytic-init": RemoteFile(
        "GraceZhao/DynamiCrafter-Analytic-Init", "initial_noise_512.pt", "dynamicrafter_analytic_init"
    ),
    "taesd": RemoteFile("madebyollin/taesd", "taesd_decoder.safetensors", "taesd"),
}
