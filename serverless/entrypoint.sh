#!/usr/bin/env bash
# Starts the worker and the ComfyUI beside it. Options go to RunPod's SDK: `--rp_serve_api` for a server on this machine.
set -euo pipefail
home=${MULTITALK_HOME:-/opt/multitalk}
pack=$(cd "$(dirname "$0")/.." && pwd)
volume=${MULTITALK_VOLUME:-/runpod-volume}
port=${COMFYUI_PORT:-8188}

models=${MODEL_PATH:-/runpod-volume/models}
if [ ! -d "$models" ]; then
    echo "entrypoint: there is no folder $models for the models; set MODEL_PATH, or mount the volume" >&2
fi
sed "s|^  base_path:.*|  base_path: $models|" "$pack/serverless/extra_model_paths.yaml" > /tmp/extra_model_paths.yaml

# A job's folder is in ComfyUI's output folder. On the volume, another worker can go on with it.
output=$home/comfyui/output
if [ -d "$volume" ] && mkdir -p "$volume/output" 2>/dev/null && [ -w "$volume/output" ]; then
    output=$volume/output
else
    echo "entrypoint: $volume cannot be written; another worker cannot go on with this one's jobs" >&2
fi

export COMFYUI_URL="http://127.0.0.1:$port"
export MULTITALK_INPUT_FOLDER="$home/comfyui/input" MULTITALK_OUTPUT_FOLDER="$output" MULTITALK_TEMP_FOLDER="$home/comfyui/temp"
cd "$pack"
# loopback only: nobody but the worker talks to ComfyUI
exec "$home/venv/bin/python" -m serverless "$@" -- \
    "$home/venv/bin/python" "$home/comfyui/main.py" --listen 127.0.0.1 --port "$port" \
    --extra-model-paths-config /tmp/extra_model_paths.yaml --output-directory "$output" \
    --disable-api-nodes --disable-auto-launch --database-url sqlite:///:memory: ${COMFYUI_ARGUMENTS:-}
