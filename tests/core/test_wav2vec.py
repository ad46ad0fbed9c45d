"""The audio encoder, against transformers' own Wav2Vec2 with the interpolation inserted.

F video frames (25 Hz), P positions of the convolutions (50 Hz), L layers, D hidden size.
"""

import json
import subprocess
import sys
import threading

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import save_file

from multitalk_nodes.multitalk_core.audio.wav2vec import (
    AudioEncoder,
    StreamedEmbeds,
    Wav2Vec2,
    _ConvFeatures,
    at_video_rate,
    normalise_samples,
)
from multitalk_nodes.multitalk_core.audio.wav2vec_files import EncoderFiles, build_encoder, infer_config, read_encoder
from multitalk_nodes.multitalk_core.clock import SAMPLE_RATE, embed_frames
from multitalk_nodes.multitalk_core.errors import AudioError, EncoderError
from multitalk_nodes.tests.support.graphs import ROOT

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48, "conv_dim": [16] * 7}
SIZES |= {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
KINDS = {
    "group": SIZES | {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False},
    "layer": SIZES | {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
}
PREFIX = "encoder.pos_conv_embed.conv."
OLD_SPELLING = {f"{PREFIX}parametrizations.weight.original{i}": f"{PREFIX}weight_{letter}" for i, letter in enumerate("gv")}

kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors this small only make threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def published(kind: str, model=transformers.Wav2Vec2Model, **changes):
    """transformers' model with random weights, norms and biases included."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = model(transformers.Wav2Vec2Config(**KINDS[kind] | changes)).eval()
        for parameter in network.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
    return network


def config_of(network) -> dict:
    return network.config.to_dict()


def encoder_of(network, do_normalize: bool = False) -> Wav2Vec2:
    return build_encoder(EncoderFiles(network.state_dict(), config_of(network), None, "tiny"), do_normalize)


def voice(seconds: float, seed: int = 0) -> torch.Tensor:
    """Noise whose level changes from second to second."""
    rng = np.random.default_rng(seed)
    samples = rng.normal(0, 1, round(seconds * SAMPLE_RATE))
    levels = np.repeat(rng.uniform(0.01, 0.2, int(seconds) + 1), SAMPLE_RATE)[: len(samples)]
    return torch.from_numpy((samples * levels).astype(np.float32))


def interpolated(features: torch.Tensor, frames: int) -> torch.Tensor:
    """numpy's linear interpolation of [1, C, P], first to first and last to last."""
    length = features.shape[2]
    where = np.linspace(0, length - 1, frames) if frames > 1 else np.zeros(1)
    rows = [np.interp(where, np.arange(length), row) for row in features[0].double().numpy()]
    return torch.from_numpy(np.array(rows)).to(features)[None]


@torch.no_grad()
def published_states(network, samples: torch.Tensor, frames: int | None = None) -> torch.Tensor:
    """Hidden states of transformers' own forward [F, L, D]; with `frames`, its features are interpolated on the way."""
    states = []

    def note(module, args, output):
        states.append((output[0] if isinstance(output, tuple) else output)[0])

    hooks = [layer.register_forward_hook(note) for layer in network.encoder.layers]
    if frames:
        hooks.append(network.feature_extractor.register_forward_hook(lambda module, args, output: interpolated(output, frames)))
    last = network(samples[None]).last_hidden_state[0]
    for hook in hooks:
        hook.remove()
    return torch.stack([*states[:-1], last], dim=1)


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


# the published single pass


@kinds
@pytest.mark.parametrize("samples", [640, 700, 6400, 64_000])
def test_where_positions_are_frames_it_is_transformers_forward(kind, samples):
    """With a last stride of 4 instead of 2, the convolutions give 25 positions a second and nothing is interpolated."""
    network = published(kind, conv_stride=[5, 2, 2, 2, 2, 2, 4])
    sound = voice(samples / SAMPLE_RATE)
    embeds = encoder_of(network).encode(sound)
    theirs = published_states(network, sound)
    assert embeds.shape == theirs.shape == (samples // 640, 3, 128)
    torch.testing.assert_close(embeds, theirs, rtol=0, atol=2e-5)


@kinds
@pytest.mark.parametrize("samples", [640, 1000, 12_345, 100_000])
def test_else_its_features_are_interpolated_before_the_transformer(kind, samples):
    network, sound = published(kind), voice(samples / SAMPLE_RATE)
    embeds = encoder_of(network).encode(sound)
    assert embeds.dtype == torch.float32
    # torch's interpolation has float32 weights, numpy's float64
    torch.testing.assert_close(embeds, published_states(network, sound, embed_frames(samples)), rtol=0, atol=2e-4)


@kinds
def test_normalising_is_transformers_feature_extractor(kind):
    sound = voice(3.3) + 0.05
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    values = torch.from_numpy(extractor(sound.numpy(), sampling_rate=SAMPLE_RATE)["input_values"][0])
    torch.testing.assert_close(normalise_samples(sound), values, rtol=0, atol=1e-5)
    network = published(kind)
    expected = published_states(network, values, embed_frames(len(sound)))
    torch.testing.assert_close(encoder_of(network, True).encode(sound), expected, rtol=0, atol=1e-4)


def test_a_normalised_silence_is_silence():
    assert torch.equal(normalise_samples(torch.zeros(1000)), torch.zeros(1000))


@kinds
@pytest.mark.parametrize("samples", [1, 100, 639])
def test_less_than_a_frame_is_padded_to_one(kind, samples):
    network, sound = published(kind), voice(samples / SAMPLE_RATE)
    padded = torch.cat([sound, torch.zeros(640 - samples)])
    torch.testing.assert_close(encoder_of(network).encode(sound), published_states(network, padded, 1), rtol=0, atol=2e-5)


@pytest.mark.parametrize(("positions", "frames"), [(1, 1), (10, 5), (49, 25), (7, 7), (3, 1)])
def test_interpolation_is_numpy_s(positions, frames):
    features = torch.randn(4, positions)
    torch.testing.assert_close(at_video_rate(features, frames), interpolated(features[None], frames)[0].T, rtol=0, atol=1e-5)


@pytest.mark.parametrize("wrong", [torch.zeros(1, 16_000), torch.zeros(0)])
def test_only_samples_of_one_voice_are_taken(wrong):
    with pytest.raises(AudioError, match=r"samples \[N\]"):
        encoder_of(published("group")).encode(wrong)


def test_an_encoder_tells_its_sizes():
    encoder = encoder_of(published("group"))
    assert isinstance(encoder, AudioEncoder) and (encoder.layers, encoder.dim) == (3, 128)


@kinds
def test_building_and_encoding_leave_the_global_generator_alone(kind):
    network = published(kind)
    before = torch.get_rng_state()
    encoder_of(network).encode(voice(1))
    assert torch.equal(torch.get_rng_state(), before)


@kinds
def test_encoding_twice_is_the_same(kind):
    encoder = encoder_of(published(kind))
    assert torch.equal(encoder.encode(voice(2)), encoder.encode(voice(2)))


# long tracks


@kinds
@pytest.mark.parametrize("do_normalize", [False, True])
@pytest.mark.parametrize("seconds", [0.01, 0.04, 3.3, 25.0])
def test_a_window_that_holds_the_track_is_the_single_pass(kind, do_normalize, seconds):
    encoder, sound = encoder_of(published(kind), do_normalize), voice(seconds)
    blocks = list(encoder.encode_in_windows(sound, embed_frames(len(sound)) + 200, 100))
    assert len(blocks) == 1
    torch.testing.assert_close(blocks[0], encoder.encode_in_one(sound), rtol=0, atol=1e-4)


@kinds
@pytest.mark.parametrize(("window", "context"), [(50, 10), (31, 0), (99, 40)])
def test_blocks_follow_one_another_without_gaps(kind, window, context):
    encoder, sound = encoder_of(published(kind)), voice(4)
    blocks = list(encoder.encode_in_windows(sound, window, context))
    step = window - 2 * context
    assert [len(block) for block in blocks] == [min(step, 100 - first) for first in range(0, 100, step)]


@kinds
def test_features_of_any_stretch_are_those_of_the_whole_track(kind):
    """The group norm's statistics and the input's are of the whole track, whose level changes."""
    encoder, sound = encoder_of(published(kind), True), voice(25)
    frames = embed_frames(len(sound))
    with torch.no_grad():
        whole = at_video_rate(encoder.conv_features(normalise_samples(sound)), frames)
        features = _ConvFeatures(encoder, sound)
        for begin, end in [(0, frames), (0, 1), (100, 350), (frames - 1, frames)]:
            torch.testing.assert_close(features.at_frames(begin, end, frames), whole[begin:end], rtol=0, atol=2e-4)


@pytest.mark.parametrize("seconds", [0.04, 9.99, 25.0])
def test_moments_over_chunks_are_the_track_s(seconds):
    encoder, sound = encoder_of(published("group")), voice(seconds) + 0.1
    with torch.no_grad():
        values = encoder.conv_layers()[0].conv(sound[None, None])[0].double().numpy()
        mean, variance = _ConvFeatures(encoder, sound).group_moments
    np.testing.assert_allclose(mean.numpy(), values.mean(axis=1), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(variance.numpy(), values.var(axis=1), rtol=1e-5)


@kinds
def test_a_long_track_is_streamed_and_near_the_single_pass(kind, tmp_path):
    """Measured 0.003 to 0.016. The weights are random, so attention looks everywhere, evenly: harder than a trained encoder."""
    encoder, sound = encoder_of(published(kind), True), voice(75)
    embeds = encoder.encode(sound, tmp_path)
    assert isinstance(embeds, StreamedEmbeds) and embeds.shape == (75 * 25, 3, 128)
    error = relative(embeds[:], encoder.encode_in_one(sound))
    assert error < 0.04, f"relative error of windows against the single pass: {error:.5f}"


@kinds
def test_a_long_track_is_the_single_pass_when_layers_look_nearby(kind, tmp_path):
    """Without attention, all that a frame sees lies within the 10 s of context; the track's statistics must still be right."""
    network = published(kind)
    for layer in network.encoder.layers:
        layer.attention.out_proj.weight.data.zero_()
    encoder, sound = encoder_of(network, True), voice(75)
    torch.testing.assert_close(encoder.encode(sound, tmp_path)[:], encoder.encode_in_one(sound), rtol=0, atol=1e-3)


def test_progress_is_told_after_every_window_and_may_stop_it():
    encoder, lines = encoder_of(published("group", num_hidden_layers=1)), []
    encoder.encode(voice(90), on_progress=lambda done, total: lines.append((done, total)))
    assert lines == [(1000, 2250), (2000, 2250), (2250, 2250)]

    def stop(done: int, total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        encoder.encode(voice(90), on_progress=stop)


@pytest.mark.parametrize("frames", [1500, 1501])
def test_up_to_sixty_seconds_one_pass_is_made(frames):
    encoder = encoder_of(published("group", num_hidden_layers=1))
    embeds = encoder.encode(voice(frames / 25))
    assert embeds.shape == (frames, 1, 128)
    assert isinstance(embeds, torch.Tensor) == (frames == 1500)


class PeakMemory:
    """The highest resident memory in MiB, sampled every 2 ms."""

    def __enter__(self):
        self.process, self.done, self.peak = psutil.Process(), threading.Event(), 0.0
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self):
        while not self.done.wait(0.002):
            self.peak = max(self.peak, self.process.memory_info().rss / 2**20)

    def __exit__(self, *error):
        self.done.set()
        self.thread.join()


PEAKS = """
import ctypes, runpy, sys
runpy.run_path(sys.argv[1])["register_pack"]()
ctypes.CDLL(None).mallopt(-3, 64 << 10)  # blocks of 64 KiB and more go back when they are freed: resident memory is memory in use
from pathlib import Path
from multitalk_nodes.tests.core.test_wav2vec import peaks
print(*peaks(Path(sys.argv[2])))
"""


def peaks(folder):
    """MiB that two and ten minutes need at most."""
    encoder = encoder_of(published("group", num_hidden_layers=6), True)
    sound = voice(600)
    encoder.encode(sound[: 120 * SAMPLE_RATE], folder)  # what libraries keep
    with PeakMemory() as two:
        encoder.encode(sound[: 120 * SAMPLE_RATE], folder)
    with PeakMemory() as ten:
        embeds = encoder.encode(sound, folder)
    if embeds.shape[0] != 15_000:
        raise ValueError(f"{embeds.shape[0]} embeddings of ten minutes")
    return two.peak, ten.peak


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc's mallopt")
def test_ten_minutes_need_no_more_memory_than_two(tmp_path):
    """In a process of its own: other tests leave fragments. The embeddings of eight more minutes would be 35 MiB, their features 94, a
    copy of their samples 29.
    """
    program = [sys.executable, "-c", PEAKS, str(ROOT / "tools" / "launch.py"), str(tmp_path)]
    ended = subprocess.run(program, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    two, ten = map(float, ended.stdout.split()[-2:])
    assert ten - two < 22, f"{ten - two:.1f} MiB more for 10 minutes than for 2"


# embeddings in a file


@pytest.fixture(scope="module")
def streamed():
    blocks = torch.randn(100, 3, 4, generator=torch.Generator().manual_seed(0))
    embeds = StreamedEmbeds(3, 4)
    for block in blocks.split([1, 40, 59]):
        embeds.append(block)
    return embeds, blocks


@pytest.mark.parametrize(
    "frames",
    [
        slice(None),
        slice(0, 1),
        slice(99, 100),
        slice(30, 60),
        slice(90, 200),
        slice(-5, None),
        slice(None, -90),
        slice(5, 5),
        slice(9, 3),
        slice(200, 300),
    ],
    ids=str,
)
def test_slices_of_the_file_are_those_of_the_tensor(streamed, frames):
    embeds, tensor = streamed
    assert embeds.shape == tensor.shape
    assert torch.equal(embeds[frames], tensor[frames])


def test_reading_between_writing(tmp_path):
    embeds = StreamedEmbeds(1, 2, tmp_path)
    assert embeds.shape == (0, 1, 2)
    for i in range(1, 4):
        embeds.append(torch.full((2, 1, 2), float(i)))
        assert torch.equal(embeds[0:1], torch.ones(1, 1, 2)) and embeds.shape[0] == 2 * i
    assert embeds[:][:, 0, 0].tolist() == [1, 1, 2, 2, 3, 3]


def test_what_is_appended_may_be_a_view(tmp_path):
    embeds, block = StreamedEmbeds(3, 2, tmp_path), torch.randn(2, 3, 5).transpose(0, 2)[:, :, :2]
    embeds.append(block)
    assert torch.equal(embeds[:], block)


def test_steps_are_refused(streamed):
    with pytest.raises(IndexError, match="consecutive"):
        streamed[0][::2]


def test_what_was_read_can_be_written(streamed):
    """It is a copy, not the file."""
    streamed[0][0:2].fill_(7)
    assert torch.equal(streamed[0][0:2], streamed[1][0:2])


# files


def write_folder(folder, network, do_normalize: bool | None = None):
    """As transformers saves it."""
    network.save_pretrained(folder)
    if do_normalize is not None:
        transformers.Wav2Vec2FeatureExtractor(do_normalize=do_normalize).save_pretrained(folder)
    return folder


def write_file(path, tensors, config: dict | None = None):
    save_file({k: t.contiguous() for k, t in tensors.items()}, path, metadata={"config": json.dumps(config)} if config else None)
    return path


def same_encoder(ours: Wav2Vec2, theirs: Wav2Vec2) -> bool:
    state, other = ours.network.state_dict(), theirs.network.state_dict()
    return (
        state.keys() == other.keys()
        and all(torch.equal(state[k], other[k]) for k in state)
        and ours.stable_layer_norm == theirs.stable_layer_norm
    )


@kinds
@pytest.mark.parametrize("do_normalize", [False, True])
def test_a_hugging_face_folder_says_whether_to_normalise(tmp_path, kind, do_normalize):
    network = published(kind)
    encoder = build_encoder(read_encoder(write_folder(tmp_path, network, do_normalize)))
    assert encoder.do_normalize == do_normalize
    assert same_encoder(encoder, encoder_of(network))


@kinds
def test_a_single_file_without_a_configuration_is_told_by_its_shapes(tmp_path, kind):
    """Group-norm encoders are then not normalised, layer-norm ones are."""
    network = published(kind)
    encoder = build_encoder(read_encoder(write_file(tmp_path / "e.safetensors", network.state_dict())))
    assert same_encoder(encoder, encoder_of(network))
    assert encoder.do_normalize == (kind == "layer")
    torch.testing.assert_close(encoder.encode(voice(1)), encoder_of(network, kind == "layer").encode(voice(1)))


@kinds
@pytest.mark.parametrize("do_normalize", [False, True])
def test_a_configuration_in_the_metadata_wins_over_shapes(tmp_path, kind, do_normalize):
    """Four heads of 32, which shapes cannot tell."""
    network = published(kind, num_attention_heads=4)
    path = write_file(tmp_path / "e.safetensors", network.state_dict(), config_of(network) | {"do_normalize": do_normalize})
    encoder = build_encoder(read_encoder(path))
    assert encoder.do_normalize == do_normalize
    torch.testing.assert_close(encoder.encode(voice(1)), encoder_of(network, do_normalize).encode(voice(1)))


@kinds
@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("said", [False, True, None])
def test_the_argument_wins_over_every_file(tmp_path, kind, asked, said):
    network = published(kind)
    assert build_encoder(read_encoder(write_folder(tmp_path / "folder", network, said)), asked).do_normalize == asked
    config = None if said is None else config_of(network) | {"do_normalize": said}
    assert build_encoder(read_encoder(write_file(tmp_path / "e.safetensors", network.state_dict(), config)), asked).do_normalize == asked


@kinds
@pytest.mark.parametrize("old", [False, True])
def test_both_spellings_of_weight_norm_are_read(tmp_path, kind, old):
    network = published(kind)
    new = {v: k for k, v in OLD_SPELLING.items()}
    names = OLD_SPELLING if old else new
    tensors = {names.get(key, key): tensor for key, tensor in network.state_dict().items()}
    encoder = build_encoder(read_encoder(write_file(tmp_path / "e.safetensors", tensors)))
    assert same_encoder(encoder, encoder_of(network))


@kinds
def test_an_encoder_inside_a_larger_model_is_found(tmp_path, kind):
    network = published(kind, transformers.Wav2Vec2ForCTC)
    assert any(key.startswith("wav2vec2.") for key in network.state_dict())
    expected = encoder_of(network.wav2vec2)
    assert same_encoder(build_encoder(read_encoder(write_folder(tmp_path / "folder", network))), expected)
    assert same_encoder(build_encoder(read_encoder(write_file(tmp_path / "e.safetensors", network.state_dict()))), expected)


def test_files_in_several_parts_are_one(tmp_path):
    network = published("group")
    network.save_pretrained(tmp_path, max_shard_size="300KB")
    parts = sorted(tmp_path.glob("*.safetensors"))
    assert len(parts) > 1
    for path in (tmp_path, parts[0], parts[-1]):
        assert same_encoder(build_encoder(read_encoder(path)), encoder_of(network))


def test_a_folder_s_file_is_the_folder(tmp_path):
    """Four heads of 32 and normalising are read from the files beside it."""
    network = published("group", num_attention_heads=4)
    folder = write_folder(tmp_path, network, True)
    by_folder, by_file = (build_encoder(read_encoder(path)) for path in (folder, folder / "model.safetensors"))
    assert by_folder.do_normalize and by_file.do_normalize
    torch.testing.assert_close(by_file.encode(voice(1)), encoder_of(network, True).encode(voice(1)))
    assert torch.equal(by_folder.encode(voice(1)), by_file.encode(voice(1)))


@kinds
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_come_out_as_float32(tmp_path, kind, dtype):
    network = published(kind)
    half = {key: tensor.to(dtype) for key, tensor in network.state_dict().items()}
    encoder = build_encoder(read_encoder(write_file(tmp_path / "e.safetensors", half)))
    assert {tensor.dtype for tensor in encoder.network.state_dict().values()} == {torch.float32}
    network.load_state_dict({key: tensor.float() for key, tensor in half.items()})
    assert same_encoder(encoder, encoder_of(network)) and encoder.encode(voice(1)).dtype == torch.float32


# the published encoders, by what transformers makes of their configurations (no memory: meta tensors)
BASE: dict = {}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
LARGE_LV60 = LARGE | {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}


@pytest.mark.parametrize(("published_config", "heads"), [(BASE, 12), (LARGE, 16), (LARGE_LV60, 16)], ids=["base", "large", "large-lv60"])
def test_shapes_tell_the_configuration_of_the_published_encoders(published_config, heads):
    config = transformers.Wav2Vec2Config(**published_config)
    with torch.device("meta"):
        tensors = transformers.Wav2Vec2Model(config).state_dict()
    found = infer_config(tensors, "published")
    theirs = config.to_dict()
    assert {key: list(v) if isinstance(v := theirs[key], tuple) else v for key in found} == found
    assert found["num_attention_heads"] == heads


# files that are not an encoder


def test_a_folder_of_pickles_is_not_opened(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text("{}")
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        with pytest.raises(EncoderError, match="can run code"):
            read_encoder(path)


@pytest.mark.parametrize("name", ["nothing.safetensors", "nothing"])
def test_a_file_that_is_not_there_is_refused(tmp_path, name):
    with pytest.raises(EncoderError, match=f"No safetensors weights in '{name}'"):
        read_encoder(tmp_path / name)


@pytest.mark.parametrize(
    "content", [b"", b"<!DOCTYPE html><html><body>Entry not found</body></html>", b"version https://git-lfs.github.com/spec/v1"]
)
def test_a_page_named_safetensors_is_refused(tmp_path, content):
    (tmp_path / "e.safetensors").write_bytes(content)
    with pytest.raises(EncoderError, match=r"'e.safetensors' is damaged .*Download it again"):
        read_encoder(tmp_path / "e.safetensors")


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path, share):
    path = write_file(tmp_path / "e.safetensors", published("group").state_dict())
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(EncoderError, match="damaged"):
        read_encoder(path)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("content", [b'{"hidden_size": ', b"\xff\xfe not text"])
def test_a_damaged_configuration_is_refused(tmp_path, name, content):
    write_folder(tmp_path, published("group"))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EncoderError, match="damaged"):
        read_encoder(tmp_path)


def outcome(files: EncoderFiles) -> str:
    try:
        build_encoder(files)
    except (EncoderError, KeyError) as error:
        return type(error).__name__
    return "accepted"


@kinds
@pytest.mark.parametrize("with_config", [True, False], ids=["configured", "read from shapes"])
def test_every_missing_tensor_is_refused(kind, with_config):
    network = published(kind)
    tensors, config = network.state_dict(), config_of(network) if with_config else None
    outcomes = {}
    for missing in tensors.keys() - {"masked_spec_embed"}:
        less = {key: tensor for key, tensor in tensors.items() if key != missing}
        outcomes[missing] = outcome(EncoderFiles(less, config, None, "less"))
    assert {key: how for key, how in sorted(outcomes.items()) if how != "EncoderError"} == {}


def test_the_mask_s_embedding_is_not_needed():
    network = published("group")
    tensors = {key: tensor for key, tensor in network.state_dict().items() if key != "masked_spec_embed"}
    encoder = build_encoder(EncoderFiles(tensors, config_of(network), None, "e"))
    assert torch.equal(encoder.encode(voice(1)), encoder_of(network).encode(voice(1)))


def test_a_tensor_of_another_shape_is_named_with_both():
    network = published("group")
    config = config_of(network) | {"intermediate_size": 64}
    with pytest.raises(EncoderError, match=r"intermediate_dense.* has shape \(48.*says \(64"):
        build_encoder(EncoderFiles(network.state_dict(), config, None, "e"))


@pytest.mark.parametrize(
    "tensors", [{}, {"audio_proj.proj1.weight": torch.zeros(2, 2)}, {"encoder.layers.0.attention.q_proj.weight": torch.zeros(2, 2)}]
)
def test_a_file_of_something_else_is_refused(tmp_path, tensors):
    with pytest.raises(EncoderError, match="'other' is not a Wav2Vec2 encoder"):
        build_encoder(EncoderFiles(tensors, None, None, "other"))


def test_an_activation_that_is_not_known_is_refused():
    network = published("group")
    with pytest.raises(EncoderError, match="hidden_act 'relu'"):
        build_encoder(EncoderFiles(network.state_dict(), config_of(network) | {"hidden_act": "relu"}, None, "e"))
