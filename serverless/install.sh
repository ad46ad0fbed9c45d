#!/usr/bin/env bash
# Everything the image needs, into one folder: a virtual environment, ComfyUI, and this pack in its custom_nodes.
#   serverless/install.sh FOLDER
# The Dockerfile calls it; it works outside of one, too.
set -euo pipefail
pack=$(cd "$(dirname "$0")/.." && pwd)
folder=$(mkdir -p "$1" && cd "$1" && pwd)
version=${COMFYUI_VERSION:-0.30.0}

echo "install: ComfyUI $version"
(cd "$pack" && env -u COMFYUI_PATH MULTITALK_COMFYUI="$version" FOLDER="$folder" python3 -c '
import os
from pathlib import Path
from tools.environment.host import find_comfyui
find_comfyui(Path.cwd(), Path(os.environ["FOLDER"]))
')
rm -rf "$folder/comfyui" # of an earlier run
mv "$folder/comfyui-$version" "$folder/comfyui"

echo "install: packages"
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --no-input --no-cache-dir --progress-bar off --quiet \
    -c "$pack/tools/constraints.txt" \
    -r "$folder/comfyui/requirements.txt" -r "$pack/requirements.txt" -r "$pack/serverless/requirements.txt"

ln -sfn "$pack" "$folder/comfyui/custom_nodes/multitalk-nodes"
mkdir -p "$folder/comfyui/input" "$folder/comfyui/output" "$folder/comfyui/temp" "$folder/comfyui/user"
echo "install: done in $folder"
