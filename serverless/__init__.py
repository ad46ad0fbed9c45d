"""Jobs in, videos out: a worker for RunPod, and for its SDK's server on one's own machine, that drives a ComfyUI beside it.

    python -m serverless --rp_serve_api -- python ComfyUI/main.py --listen 127.0.0.1

Needs the packages of serverless/requirements.txt, and soundfile as the nodes do; neither torch nor ComfyUI is imported.
"""
