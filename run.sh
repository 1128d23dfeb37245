#!/usr/bin/env bash
# Run everything: install, merge two checkpoints into dyn and con, sample every prompt with both, write videos to output/.
#
#   bash run.sh                                  # published weights under $CKPT_PATH, else the embedded sprites
#   bash run.sh --ddim_steps 25 --seed 7         # further flags go to the sampler (scripts/infer_multi.py --help)
#   NPROC=4 bash run.sh                          # four processes; the default is one per GPU, or one on CPU
#
# Run it again to resume: finished clips are skipped.
set -euo pipefail
cd "$(dirname "$0")"
CKPT_PATH="${CKPT_PATH:-./ckpt}"
case "$CKPT_PATH" in "~" | "~/"*) CKPT_PATH="$HOME${CKPT_PATH#?}" ;; esac   # a quoted ~ is not expanded by the shell
export CKPT_PATH

. scripts/setup.sh
install_once run -r requirements.txt -e .

base="$CKPT_PATH/dynamicrafter_512_v1/model.ckpt"
tuned="$CKPT_PATH/dynamicrafter_cil_512_v1/timenoise.ckpt"
noise="$CKPT_PATH/dynamicrafter_analytic_init/initial_noise_512.pt"

if [ -f "$base" ] && [ -f "$tuned" ]; then
    merged="$CKPT_PATH/merge"
    merging=(--dyn-alpha 0.25 --dyn-beta 0.75 --con-alpha 1.0 --con-beta 0.25 --seed 123)
    sampling=(--config configs/models/dynamicrafter_512.yaml --prompt_dir prompts/scenes --savedir output
              --height 320 --width 512 --video_length 16 --frame_stride 24 --perframe_ae
              --unconditional_guidance_scale 7.5 --T 500)
    if [ -f "$noise" ]; then sampling+=(--whether_analytic_init 0 --analytic_init_path "$noise"); fi
else
    echo "No published weights under $CKPT_PATH (see 'edg fetch'): running the embedded model, sprites."
    base=edg/sprites/weights/base.safetensors
    tuned=edg/sprites/weights/tuned.safetensors
    merged="$CKPT_PATH/merge_sprites"
    merging=(--config configs/merge/edg_temporal_conv.yaml)   # the best recipe in docs/sprites.md
    sampling=(--config configs/models/sprites.yaml --prompt_dir prompts/sprites --savedir output/sprites
              --unconditional_guidance_scale 1.0 --T 300 --chunk 2)   # small sets are replaced quickly, so chunks can be small
fi

# If this script is killed, its work stops too (Linux): edg.core.process ends it.
python -m edg.core.process $$ python run_merge.py --basedir "$PWD" --ckptdir "$CKPT_PATH" \
    --base "$base" --tuned "$tuned" --outdir "$merged" "${merging[@]}"

processes="${NPROC:-$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')}"
launcher=(python)
if [ "$processes" != 1 ]; then launcher=(torchrun --standalone --nproc_per_node="$processes"); fi
sampling+=("$@")
python -m edg.core.process $$ "${launcher[@]}" scripts/infer_multi.py \
    --dynamic_path "$merged/dyn.pt" --consistency_path "$merged/con.pt" \
    --seed 123 --n_samples 1 --bs 1 --ddim_steps 50 --ddim_eta 1.0 --guidance_rescale 0.7 \
    --timestep_spacing uniform_trailing --text_input --M 1000 "${sampling[@]}"

for i in "${!sampling[@]}"; do   # the last --savedir counts
    case "${sampling[i]}" in --savedir) out="${sampling[i + 1]}" ;; --savedir=*) out="${sampling[i]#*=}" ;; esac
done
cat << END

The clips are in $out. Next steps:
    . .venv/bin/activate                                # unless you use an environment of your own
    edg report $out --out report                        # then open report/index.html
    edg sample --config sprites --motion 1 --savedir output/more    # more motion, with the embedded model
    edg demo                                            # the same in a browser: pip install -e '.[demo]'
    edg fetch dynamicrafter-512 cil-512 analytic-init   # published weights (21 GB) for your own pictures; then bash run.sh
END
