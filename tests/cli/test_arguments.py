"""Catalogue, arguments: a mistake is told with what would be right, before anything is read or written."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from runs import given_of
from sampling import RED, WEIGHTS, sampler, save

from edg.weights.store import open_weights

ROOT = Path(__file__).parents[2]
HELPERS = ROOT / "tests/helpers"
BASE = WEIGHTS / "base.safetensors"
TWO_SETS = ("--sets", f"dyn={BASE}", f"con={BASE}")


@pytest.fixture
def prompts(tmp_path):
    """A folder of one prompt."""
    save(tmp_path / "in/1.png", Image.new("RGB", (8, 8), RED))
    (tmp_path / "in/p.txt").write_text("a red circle moves left")
    return tmp_path / "in"


@pytest.fixture
def sample(command, monkeypatch):
    return sampler(command, monkeypatch)


def written(path, text):
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "argv, hint",
    [
        (["sampel"], "did you mean 'sample'?"),
        (["sample", "--ddim_step", 3], "did you mean '--ddim_steps'?"),
        (["sample", "--sets", "a=x", "--config", "dynamicrafter-521"], "did you mean 'dynamicrafter-512'?"),
        (["merge", "tise"], "did you mean 'ties'?"),
        (["train", ROOT / "configs/train/sprites.yaml", "train.stepss=3"], "did you mean 'steps'?"),
        (["score", ".", "--metrics", "motion_degre"], "did you mean 'motion_degree'?"),
    ],
)
def test_c66_unknown_option(command, argv, hint):
    code, err = command(argv)
    assert code == 2 and hint in err


@pytest.mark.parametrize(
    "name, text, hint",
    [
        ("merge", "inputs: {base: a}\noutputz: {}", "did you mean 'outputs'?"),
        ("merge", "inputs: {base: a, tuned: b}\noutputs: {x: [{op: dynamik}]}", "did you mean 'dynamic'?"),
        (
            "merge",
            "inputs: {base: a, tuned: b}\noutputs: {x: [{op: dynamic, alfa: 1}]}",
            "did you mean 'alpha'?",
        ),
        ("sweep", "out: x\ngrid: {seed: [1]}\noptions: {confg: sprites}", "did you mean 'config'?"),
        ("train", "nmae: sprites", "did you mean 'name'?"),
    ],
)
def test_c66_unknown_key(command, tmp_path, name, text, hint):
    code, err = command([name, written(tmp_path / "x.yaml", text)])
    assert code == 2 and hint in err


@pytest.mark.parametrize(
    "flags, given",
    [
        ((*TWO_SETS, "--T", 1001), "--T 1001"),
        ((*TWO_SETS, "--T", -1), "--T -1"),
        (("--ddim_steps", 0), "--ddim_steps 0"),
        (("--ddim_steps", 1001), "--ddim_steps 1001"),
        (("--ddim_eta", -0.1), "--ddim_eta -0.1"),
        (("--unconditional_guidance_scale", "nan"), "--unconditional_guidance_scale nan"),
        (("--cfg_img", "nan"), "--cfg_img nan"),
        (("--guidance_rescale", "nan"), "--guidance_rescale nan"),
        (("--height", 33), "--height 33"),
        (("--width", -8), "--width -8"),
        (("--frames", 0), "--video_length 0"),
        (("--fps", 0), "--fps 0"),
        (("--fps", "nan"), "--fps nan"),
        (("--seed", -1), "--seed -1"),
        (("--seed", 2**64), f"--seed {2**64}"),
        (("--seed", "1e3"), "--seed"),
    ],
)
def test_c67_out_of_range(sample, prompts, flags, given):
    code, err, out = sample(prompts, *flags)
    assert code == 2 and given in given_of(err) and not out.exists(), err


def test_c67_one_step_and_published_sizes(sample, prompts, command):
    assert sample(prompts, "--ddim_steps", 1).code == 0
    code, err = command(["doctor", "--plan", "dynamicrafter-512", "--device", "cpu", "--height", 300])
    assert code == 2 and "--height 300" in given_of(err)


def test_c68_more_samples_and_batch_than_prompts(sample, prompts):
    code, err, out = sample(prompts, "--n_samples", 3, "--bs", 16)
    assert code == 0, err
    assert sorted(path.name for path in out.glob("*.mp4")) == [f"0000-1_sample{i}.mp4" for i in range(3)]


RANK = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
from fakes import FakeSystem, job, run
from edg.core.dist import world
system = FakeSystem()
with world("cpu") as here:
    run(job(Path({folder!r}), count=1), system, lambda: "network", here)
print(here.rank, sum(map(len, system.log)))
"""


@pytest.mark.slow
def test_c69_more_processes_than_prompts(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = RANK.format(paths=[str(HELPERS), str(ROOT)], folder=str(tmp_path))
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env=os.environ | place | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    told = [rank.communicate()[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0] and told == ["0 1\n", "1 0\n"]
    assert len(list((tmp_path / "out").glob("*.mp4"))) == 1


def hostile_yaml(sentinel):
    touch = f"touch {sentinel}"
    return {
        "target": f"model:\n  target: os.system\n  params: {{command: {touch}}}\n",
        "target of a part": "model:\n  target: lvdm.models.ddpm3d.LatentVisualDiffusion\n"
        f"  params:\n    unet_config: {{target: os.system, params: {{command: {touch}}}}}\n",
        "tag": f'model: !!python/object/apply:os.system ["{touch}"]\n',
        "constructor": f'!!python/object/new:os.system ["{touch}"]\n',
        "module": "!!python/module:antigravity\n",
        "aliases": "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(
            f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
        ),
        "itself": "a: &a [*a]\n",
        "depth": "a: " + "[" * 10_000 + "]" * 10_000 + "\n",
        "not text": "\x00\x01\x02",
    }


@pytest.mark.parametrize("kind", hostile_yaml(""))
@pytest.mark.parametrize("how", ["sample --config", "merge", "train", "sweep"])
def test_c70_configuration_that_wants_to_run_something(command, tmp_path, kind, how):
    sentinel = tmp_path / "ran"
    path = written(tmp_path / "x.yaml", hostile_yaml(sentinel)[kind])
    more = ["--sets", f"a={BASE}"] if how.startswith("sample") else []
    code, err = command([*how.split(), path, *more])
    assert code == 2 and len(err) < 2000, err
    assert not sentinel.exists() and "antigravity" not in sys.modules


def test_c70_a_target_that_is_never_looked_at_runs_nothing_either(tmp_path):
    import yaml

    from edg.networks.latent_video.models import load_spec

    sys.path.insert(0, str(ROOT / "tests/networks"))
    from test_spec import published

    values = published("512")
    target = {"target": "os.system", "params": {"command": f"touch {tmp_path / 'ran'}"}}
    values["model"]["params"]["first_stage_config"]["params"]["lossconfig"] = target
    values["model"]["params"]["scheduler_config"] = target
    load_spec(str(written(tmp_path / "x.yaml", yaml.safe_dump(values))))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("device", ["cuda", "cuda:7"])
def test_c71_cuda_without_a_gpu(sample, prompts, monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, err, out = sample(prompts, "--device", device)
    assert code == 4 and "cuda" in given_of(err) and not out.exists()


@pytest.fixture
def merged(command, tiny, tmp_path):
    """merged(step) -> (exit code, stderr, name -> tensor of the one output)."""

    def merge(step, *flags):
        inputs = json.dumps({"base": str(tiny.base), "tuned": str(tiny.tuned)})
        recipe = written(tmp_path / "x.yaml", f"inputs: {inputs}\noutputs: {{x: [{step}]}}\n")
        code, err = command(["merge", recipe, "--full", "--out", tmp_path / "out", "--overwrite", *flags])
        path = tmp_path / "out/x.safetensors"
        return code, err, open_weights(path) if path.exists() else None

    return merge


def tensors(path):
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.parametrize(
    "step, equal",
    [
        ("{op: extrapolate, alpha: 0}", "base"),
        ("{op: dynamic, alpha: 0, beta: 1, drop_rate: 0.7}", "base"),
        ("{op: dynamic, alpha: 0.25, beta: 0, drop_rate: 0.7}", "base"),
        ("{op: consistent, alpha: 1, beta: 0, drop_rate: 0.7, form: released}", "tuned"),
        ("{op: linear, weights: [0, 1]}", "tuned"),
    ],
)
def test_c72_nothing_changes_to_the_bit(merged, tiny, step, equal):
    code, err, made = merged(step)
    assert code == 0, err
    for name, tensor in tensors(getattr(tiny, equal)).items():
        assert torch.equal(made[name], tensor), name


def test_c72_negative_walks_towards_the_tuned_model(merged, tiny):
    code, err, made = merged("{op: extrapolate, alpha: -1}")
    assert code == 0, err
    for name, tensor in tensors(tiny.tuned).items():
        torch.testing.assert_close(made[name], tensor)


@pytest.mark.parametrize(
    "step, flags, code, told",
    [
        ("{op: extrapolate, alpha: 1.0e+6}", (), 0, "alpha 1e+06 is far beyond the strengths in use"),
        ("{op: extrapolate, alpha: 1.0e+9}", ("--dtype", "float16"), 2, "too large for float16"),
        (
            "{op: extrapolate, alpha: 1.0e+39}",
            (),
            2,
            "alpha 1e+39; expected a finite number of at most 1e+15",
        ),
        ("{op: extrapolate, alpha: .nan}", (), 2, "alpha nan; expected a finite number"),
        ("{op: extrapolate, alpha: .inf}", (), 2, "alpha inf; expected a finite number"),
        (
            "{op: dynamic, alpha: 1, beta: 1, drop_rate: 1.5}",
            (),
            2,
            "drop_rate 1.5; expected a number from 0 to 1",
        ),
        (
            "{op: consistent, alpha: 3, beta: 0.25, drop_rate: 0.7, form: released}",
            (),
            0,
            "alpha 3 scales the whole",
        ),
    ],
)
def test_c72_huge_and_impossible(merged, step, flags, code, told):
    got, err, made = merged(step, *flags)
    assert got == code and told in err, err
    assert (made is not None) == (code == 0)


def test_c93_torchvision_of_another_build(command, monkeypatch, sample, prompts, capsys):
    """Both where it is looked for and where it is met."""

    def refuse(name="torchvision", *_):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("edg.cli.doctor.import_module", refuse)
    code, err = command(["doctor"])
    assert code == 4 and "torchvision" in given_of(err)
    monkeypatch.setattr("edg.runner.prepare.Job.load", lambda *args: refuse())
    code, err, _ = sample(prompts)
    assert code == 4 and "torchvision" in given_of(err)


LOCALE = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
import sampling
from edg.cli.main import entry
from edg.runner.prepare import Job
from edg.systems.edg import generate
Job.load, generate.generate = lambda *args: "network", sampling.still
entry(["sample", "--config", "sprites", "--sets", "a=" + {base!r}, "--device", "cpu", *sys.argv[1:]])
"""


@pytest.mark.slow
def test_c95_a_terminal_and_names_without_unicode(tmp_path):
    """The C locale, without Python's rescue from it."""
    folder = tmp_path / "café 日本"
    save(folder / "😀.png", Image.new("RGB", (8, 8), RED))
    (folder / "p.txt").write_text("ein Kreis läuft 日本語", encoding="utf-8")
    plain = {
        "LC_ALL": "C",
        "LANG": "C",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONUTF8": "0",
        "PYTHONIOENCODING": "",
    }
    program = LOCALE.format(paths=[str(HELPERS), str(ROOT)], base=str(BASE))
    argv = [sys.executable, "-c", program, "--prompt_dir", str(folder), "--savedir", str(folder / "out")]
    done = subprocess.run(argv, env=os.environ | plain, capture_output=True)
    assert done.returncode == 0, done.stderr
    (record,) = (json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("out/1000/*.json"))
    assert record["settings"]["prompt"] == "ein Kreis läuft 日本語" and os.path.exists(record["image"])
    assert done.stderr.decode("ascii") and len(list(folder.glob("out/1000/*.mp4"))) == 1
