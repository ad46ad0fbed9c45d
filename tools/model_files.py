"""Where the files of the example workflows come from: the editor offers their download where one is missing."""

from __future__ import annotations

REPACKAGED = "Comfy-Org/Wan_2.1_ComfyUI_repackaged"

# file: (repository, path in it, folder of ComfyUI's models)
FILES = {
    "wan2.1_i2v_480p_14B_fp16.safetensors": (REPACKAGED, "split_files/diffusion_models", "diffusion_models"),
    "wan2.1_infiniteTalk_single_fp16.safetensors": (REPACKAGED, "split_files/model_patches", "model_patches"),
    "wan2.1_infiniteTalk_multi_fp16.safetensors": (REPACKAGED, "split_files/model_patches", "model_patches"),
    "wan_2.1_vae.safetensors": (REPACKAGED, "split_files/vae", "vae"),
    "clip_vision_h.safetensors": (REPACKAGED, "split_files/clip_vision", "clip_vision"),
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors": (REPACKAGED, "split_files/text_encoders", "text_encoders"),
    "wav2vec2-chinese-base_fp16.safetensors": ("Kijai/wav2vec2_safetensors", "", "audio_encoders"),
    "lightx2v_I2V_14B_480p_cfg_step_distill_rank64_bf16.safetensors": ("Kijai/WanVideo_comfy", "Lightx2v", "loras"),
}


def downloads(values) -> list[dict[str, str]]:
    """What a node's `properties.models` says of the files among its values."""
    found = []
    for name in values:
        if isinstance(name, str) and name in FILES:
            repository, path, folder = FILES[name]
            url = f"https://huggingface.co/{repository}/resolve/main/{f'{path}/' if path else ''}{name}"
            found.append({"name": name, "url": url, "directory": folder})
    return found
