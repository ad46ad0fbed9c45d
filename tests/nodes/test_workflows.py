"""The example workflows, on a real ComfyUI: they fit its nodes, both forms are the same graph, and they make videos. And every node
explains itself.
"""

import copy
import json
import re

import pytest
import torch
from PIL import Image

from multitalk_nodes.multitalk_core.audio.files import read_sound
from multitalk_nodes.multitalk_core.audio.loudness import voice_energy
from multitalk_nodes.multitalk_core.audio.sound import mono_16k
from multitalk_nodes.multitalk_core.clock import SAMPLE_RATE
from multitalk_nodes.multitalk_core.lipsync.check import LEAST_FRAMES
from multitalk_nodes.multitalk_core.lipsync.curves import mouth_opening, pearson
from multitalk_nodes.multitalk_core.people.dialogue import dialogue
from multitalk_nodes.tests.support.graphs import ROOT, SAMPLES, Probe, workflow
from multitalk_nodes.tools.comfyui import server as tools
from multitalk_nodes.tools.models.downloads import FILES
from multitalk_nodes.tools.workflows.examples import EXAMPLES
from multitalk_nodes.tools.workflows.workflows import (
    ONLY_IN_THE_EDITOR,
    ROOM,
    SIZES,
    TITLE,
    UPLOADS,
    slots,
    to_graph,
    to_prompt,
    with_defaults,
)

NAMES = sorted(file.stem for file in (ROOT / "workflows" / "api").glob("*.json"))
FRAMES = {"demo_one_speaker": 101, "demo_two_speakers": 88}  # a whole clip; 0.9 s and 2.6 s of voices
FRAMES |= {"demo_long_talk": 197, "demo_long_dialogue": 197, "demo_dubbing": 101}  # 4.02 s and 3.87 s
FRAMES |= {"demo_duet": 70, "demo_bystander": 65, "demo_four_people": 80}
LEAST = {"demo_four_people": 0.7}  # own voice, of some 20 frames that each of them speaks
KINDS = ("demo_one_speaker", "demo_duet", "demo_long_talk", "demo_long_dialogue", "demo_dubbing", "infinitetalk_one_speaker")
SMALL = {  # what at_its_smallest changes
    "MultiTalkLoadAudio": {"duration": 0.8},
    "MultiTalkConditioning": {"frames": 41},
    "MultiTalkLongVideo": {"steps": 8, "shift": 3.0, "text_scale": 1.0, "audio_scale": 1.0, "clip_frames": 41},
}
DOCS = ROOT / "web" / "docs"


@pytest.fixture(scope="module")
def object_info(server):
    """After the uploads: combos list what the input folder holds."""
    for kind in ("png", "wav", "mp4"):
        for sample in SAMPLES.glob(f"*.{kind}"):
            server.upload(sample)
    return server.object_info()


def graph_of(name):
    return json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


def unfit(prompt, object_info):
    """What a prompt has that its nodes do not know: 'node input: why'."""
    problems = []
    for key, node in prompt.items():
        info = object_info.get(node["class_type"])
        if info is None:
            problems.append(f"{key} {node['class_type']}: no such node")
            continue
        known = {slot.name: slot for slot in slots(info, list(node["inputs"]))}
        missing = [name for name, slot in known.items() if not slot.optional and slot.in_prompt and name not in node["inputs"]]
        problems += [f"{key} {name}: missing" for name in missing]
        for name, value in node["inputs"].items():
            if (problem := _unfit_input(value, known.get(name), prompt, object_info)) is not None:
                problems.append(f"{key} {name}: {problem}")
    return problems


def _unfit_input(value, slot, prompt, object_info):
    if slot is None:
        return "no such input"
    if isinstance(value, list):
        source = prompt.get(value[0])
        outputs = object_info[source["class_type"]]["output"] if source else []
        fits = value[1] < len(outputs) and {outputs[value[1]], "*"} & {*slot.type.split(",")}
        return None if fits else f"takes {slot.type}, but is linked to {outputs}[{value[1]}]"
    if not slot.is_widget:
        return f"needs a link, has {value!r}"
    kinds = {"INT": int, "FLOAT": (int, float), "BOOLEAN": bool, "STRING": str, "COMBO": str, "COMFY_DYNAMICCOMBO_V3": str}
    if not isinstance(value, kinds[slot.type]):
        return f"{value!r} is no {slot.type}"
    choices = [choice if isinstance(choice, str) else choice["key"] for choice in slot.options.get("options", ())]
    if choices and value not in [*choices, *FILES]:  # the large models' files are not here
        return f"{value!r} is none of {choices}"
    low, high = slot.options.get("min", value), slot.options.get("max", value)
    return None if low <= value <= high else f"{value} is not in {low}…{high}"


# -- the workflows


def test_every_workflow_has_its_two_forms_and_a_thumbnail():
    assert NAMES
    assert sorted(file.stem for file in (ROOT / "workflows").glob("*.json")) == NAMES == sorted(EXAMPLES)
    for name in NAMES:
        thumbnail = (ROOT / "workflows" / f"{name}.jpg").read_bytes()
        assert thumbnail.startswith(b"\xff\xd8") and len(thumbnail) < 60_000


def test_the_template_browser_lists_them_and_not_the_api_files(server):
    assert sorted(server.get("/workflow_templates")["multitalk-nodes"]) == NAMES
    for name in NAMES:
        assert server.get(f"/api/workflow_templates/multitalk-nodes/{name}.json") == graph_of(name)
        assert server.get(f"/api/workflow_templates/multitalk-nodes/{name}.jpg").startswith(b"\xff\xd8")


@pytest.mark.parametrize("name", NAMES)
def test_nodes_inputs_and_values_are_known(object_info, name):
    assert unfit(workflow(name), object_info) == []


def test_the_check_sees_what_it_looks_for(object_info):
    prompt = workflow("demo_one_speaker")
    by_type = {node["class_type"]: node["inputs"] for node in prompt.values()}
    by_type["MultiTalkScheduler"]["steps"] = 0
    by_type["MultiTalkWav2VecEmbeds"]["layout"] = "random"
    by_type["MultiTalkDecode"]["color"] = by_type["MultiTalkDecode"].pop("colour")
    by_type["MultiTalkGuider"]["positive"] = by_type["MultiTalkGuider"]["model"]
    by_type["SaveVideo"]["video"] = 1
    found = "\n".join(unfit(prompt, object_info))
    for problem in (
        "steps: 0 is not in",
        "layout: 'random' is none",
        "colour: missing",
        "color: no such",
        "positive: takes",
        "video: needs",
    ):
        assert problem in found
    assert found.count("\n") == 5


@pytest.mark.parametrize("name", NAMES)
def test_the_editors_form_is_the_same_graph(object_info, name):
    assert to_prompt(graph_of(name), object_info) == with_defaults(workflow(name), object_info)


def test_a_growing_input_and_every_kind_of_widget_come_back(object_info):
    """The converters against each other, on more than the examples have."""
    prompt = workflow("demo_two_speakers")
    embeds = next(node["inputs"] for node in prompt.values() if node["class_type"] == "MultiTalkWav2VecEmbeds")
    embeds["speakers.speaker_3"] = embeds["speakers.speaker_0"]
    assert to_prompt(to_graph("x", prompt, object_info, "", EXAMPLES["demo_two_speakers"].layout), object_info) == with_defaults(
        prompt, object_info
    )
    graph = graph_of("demo_two_speakers")
    graph["nodes"][-1]["widgets_values"].pop()
    with pytest.raises(ValueError, match=r"stores \d values; \d were expected"):
        to_prompt(graph, object_info)


@pytest.mark.parametrize("name", NAMES)
def test_nodes_do_not_overlap_and_lie_in_their_groups(name):
    graph = graph_of(name)
    boxes = {node["id"]: _box(node) for node in graph["nodes"]}
    for first, (x0, y0, x1, y1) in boxes.items():
        overlapping = [k for k, (a0, b0, a1, b1) in boxes.items() if k != first and x0 < a1 and a0 < x1 and y0 < b1 and b0 < y1]
        assert overlapping == []
    frames = [(x, y, x + w, y + h) for x, y, w, h in (group["bounding"] for group in graph["groups"])]
    for node in graph["nodes"]:
        x0, y0, x1, y1 = boxes[node["id"]]
        around = [frame for frame in frames if frame[0] <= x0 and frame[1] <= y0 and x1 <= frame[2] and y1 <= frame[3]]
        assert len(around) == (node["type"] not in ONLY_IN_THE_EDITOR), node["type"]
    assert len(frames) == sum(len(band) for band in EXAMPLES[name].layout)


def _box(node):
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + height + ROOM.get(node["type"], 0)


@pytest.mark.parametrize("name", NAMES)
def test_nodes_that_show_something_have_room_for_it(object_info, name):
    """As the editor draws them (both renderers, frontend 1.47) once a picture, a video of any shape, or a text is there."""
    least = {"LoadImage": 300, "LoadVideo": 360, "PreviewAny": 140, "MultiTalkLongVideo": 1000}
    for node in graph_of(name)["nodes"]:
        if (info := object_info.get(node["type"])) is None:
            continue
        uploads = any(slot.options.get(flag) for slot in slots(info) for flag in UPLOADS)
        if info["output_node"] or uploads:
            assert node["type"] in SIZES | ROOM, f"how large does {node['type']} grow?"
        assert node["size"][1] + ROOM.get(node["type"], 0) >= least.get(node["type"], 0)


@pytest.mark.parametrize("name", NAMES)
def test_nodes_name_the_pack_they_come_from(object_info, name):
    for node in graph_of(name)["nodes"]:
        if node["type"] not in ONLY_IN_THE_EDITOR:
            ours = object_info[node["type"]]["python_module"] == "custom_nodes.multitalk-nodes"
            assert node["properties"]["cnr_id"] == ("multitalk-nodes" if ours else "comfy-core")


def test_the_editor_offers_every_missing_file():
    for name in NAMES:
        for node in graph_of(name)["nodes"]:
            wanted = [value for value in node.get("widgets_values", ()) if isinstance(value, str) and value.endswith(".safetensors")]
            models = node["properties"].get("models", [])
            assert [model["name"] for model in models] == wanted, node["type"]
            assert all(model["url"].startswith("https://") and model["url"].endswith(f"/{model['name']}") for model in models)


def test_the_blueprint_is_listed_and_is_the_example_without_its_inputs(server, object_info):
    listed = server.get("/global_subgraphs")
    (key,) = [key for key, entry in listed.items() if entry["name"] == "Talking video"]
    blueprint = json.loads(server.get(f"/global_subgraphs/{key}")["data"])
    (inside,) = blueprint["definitions"]["subgraphs"]
    assert [port["name"] for port in inside["inputs"]] == ["image", "audio", "text"]
    assert [port["type"] for port in inside["outputs"]] == ["VIDEO", "STRING"]
    links = {link["id"]: link for link in inside["links"]}
    assert len(links) == len(inside["links"])
    for node in inside["nodes"]:
        for place, slot in enumerate(node["inputs"]):
            if slot["link"] is not None:
                assert (links[slot["link"]]["target_id"], links[slot["link"]]["target_slot"]) == (node["id"], place)
        required = [slot for slot in node["inputs"] if "widget" not in slot and "shape" not in slot and slot["link"] is None]
        assert required == [], f"{node['type']} lacks {required}"
    assert blueprint["nodes"][0]["type"] == inside["id"]


@pytest.mark.parametrize("name", KINDS)
def test_it_makes_a_video_at_its_smallest(server, object_info, name):
    """What the editor queues, through the real queue, to a file that plays."""
    prompt = at_its_smallest(with_demo(to_prompt(graph_of(name), object_info)))
    assert_talks(server, prompt, name, round(len(spoken(prompt)[0]) / SAMPLE_RATE * 25))


@pytest.mark.slow
@pytest.mark.parametrize("name", FRAMES)
def test_it_makes_a_video(server, object_info, name):
    """The demo's workflows as they are."""
    assert_talks(server, to_prompt(graph_of(name), object_info), name, FRAMES[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*NAMES} - {*FRAMES} - {*KINDS}))
def test_those_for_the_published_models_make_one_of_the_demo_model(server, object_info, name):
    prompt = at_its_smallest(with_demo(to_prompt(graph_of(name), object_info)))
    assert_talks(server, prompt, name, round(len(spoken(prompt)[0]) / SAMPLE_RATE * 25))


def assert_talks(server, prompt, name, frames):
    """It makes a video of so many frames, in which every mouth follows its own voice and no other; its own check says so, if it has one."""
    outputs = server.run(prompt, timeout=900)
    (file,) = [file for file in server.files(outputs) if file.suffix == ".mp4"]  # the rest are previews
    video = Probe(file)
    for report in [outputs[key]["text"][0] for key, node in prompt.items() if node["class_type"] == "MultiTalkSyncCheck"]:
        assert frames < LEAST_FRAMES or report.startswith("All is as it should be."), report
    said = spoken(prompt)
    assert video.fps == 25 and video.count == frames
    assert video.shows_something()
    assert max(abs(frame.astype(int) - video.frames[0]).mean() for frame in video.frames) > 1, "something moves"
    assert abs(video.seconds - video.count / 25) < 0.06, "sound in blocks of 1024 samples"
    openings = [mouth_opening(torch.from_numpy(video.frames).float() / 255, box) for box in faces(prompt, video)]
    for mouth, opening in enumerate(openings):
        for voice, waveform in enumerate(said):
            value = pearson(opening, voice_energy(waveform, video.count))
            assert value > LEAST.get(name, 0.85) if mouth == voice else value < 0.3, f"mouth {mouth}, voice {voice}: {value:.2f}"
    for quiet in openings[len(said) :]:
        assert quiet.std() < 0.2 * openings[0].std()


def faces(prompt, video):
    """The boxes of the faces in a workflow's picture, in the video's pixels."""
    (file,) = [node["inputs"].get("image") or "face.png" for node in prompt.values() if node["class_type"] in ("LoadImage", "LoadVideo")]
    scale = video.frames.shape[1] / Image.open(SAMPLES / file).height
    return [tuple(scale * edge for edge in box) for box in boxes_of(file)]


def with_demo(prompt):
    """A workflow for the published models with the demo model in their place; one of the demo's as it is."""
    if any(node["class_type"] == "MultiTalkDemoModel" for node in prompt.values()):
        return prompt
    demo = "1000"
    outputs = {
        "UNETLoader": 0,
        "LoraLoaderModelOnly": 0,
        "MultiTalkModelLoader": 1,
        "VAELoader": 2,
        "MultiTalkWav2VecLoader": 3,
        "CLIPTextEncode": 4,
    }
    replaced = {key: [demo, outputs[node["class_type"]]] for key, node in prompt.items() if node["class_type"] in outputs}
    dropped = {key for key, node in prompt.items() if node["class_type"] in ("CLIPLoader", "CLIPVisionLoader", "MultiTalkImageSize")}
    made = {demo: {"class_type": "MultiTalkDemoModel", "inputs": {"family": "infinitetalk"}}}
    for key, node in prompt.items():
        if key in replaced or key in dropped:
            continue
        links = {name: value[0] for name, value in node["inputs"].items() if isinstance(value, list)}
        inputs = {name: value for name, value in node["inputs"].items() if links.get(name) not in dropped}
        inputs |= {name: replaced[source] for name, source in links.items() if source in replaced}
        made[key] = {**node, "inputs": inputs}
    return made


def at_its_smallest(prompt):
    """A workflow with small pictures, words of 0.8 s, and clips of 41 frames in 8 steps."""
    made = copy.deepcopy(prompt)
    pictures = [node["inputs"] for node in made.values() if node["class_type"] == "LoadImage"]
    for inputs in pictures:
        inputs["image"] = inputs["image"].replace(".png", "_small.png")
    boxes = [box for inputs in pictures for box in boxes_of(inputs["image"])]
    for node in made.values():
        node["inputs"] |= SMALL.get(node["class_type"], {})
        if node["class_type"] == "MultiTalkSpeaker" and node["inputs"]["box"]:
            node["inputs"]["box"] = ", ".join(map(str, boxes.pop(0)))
        if node["class_type"] in ("MultiTalkLongVideo", "MultiTalkPreviewSpeakers"):
            node["inputs"] |= {"width": 64 if "video" in node["inputs"] else 0, "height": 0}
    return made


def boxes_of(file):
    """The faces in one of the samples, in its pixels."""
    return json.loads((SAMPLES / file).with_suffix(".json").read_text(encoding="utf-8"))["boxes"]


def spoken(prompt):
    """What each speaker of a workflow is heard to say in their turn, at 16 kHz."""
    sounds = {key: recorded(**node["inputs"]) for key, node in prompt.items() if node["class_type"] == "MultiTalkLoadAudio"}
    sounds |= {key: torch.cat([*sounds.values()]) for key, node in prompt.items() if node["class_type"] == "AudioConcat"}
    for node in prompt.values():
        if node["class_type"] == "MultiTalkDialogue":
            clips = [(sounds[link[0]][None], SAMPLE_RATE) for name, link in node["inputs"].items() if name.startswith("audios.")]
            settings = [node["inputs"][name] for name in ("mode", "when", "pause", "names")]
            return [waveform[0] for waveform, _ in dialogue(clips, *settings).tracks]
    voices = [sounds[node["inputs"]["audio"][0]] for node in prompt.values() if node["class_type"] == "MultiTalkSpeaker"]
    total, begin, heard = sum(len(voice) for voice in voices), 0, []
    for voice in voices:
        heard.append(torch.nn.functional.pad(voice, (begin, total - begin - len(voice))))
        begin += len(voice)
    return heard


def recorded(audio, start, duration, **_):
    waveform, rate = read_sound(SAMPLES / audio, start, duration)
    return mono_16k(waveform, rate)


# -- the nodes


@pytest.fixture(scope="module")
def ours(server, object_info):
    return {name: object_info[name] for name in server.pack_nodes()}


def test_every_node_has_a_help_page_and_there_are_no_others(ours):
    assert {file.stem for file in DOCS.glob("*.md")} == set(ours)


def test_help_pages_name_every_input_and_output(ours):
    for name, info in ours.items():
        page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
        mentioned = set(re.findall(r"`([^`]+)`", page))
        wanted = {slot.name.rsplit(".", 1)[-1] for slot in slots(info) if slot.in_prompt} | set(info["output_name"])
        assert wanted <= mentioned, f"{name}.md does not name {wanted - mentioned}"


def test_help_pages_have_no_relative_links():
    """The editor takes them from its own root, where they lead nowhere."""
    for file in DOCS.glob("*.md"):
        assert re.findall(r"(?<!!)\[[^\]]*\]\((?!https?:)", file.read_text(encoding="utf-8")) == [], file.name


def test_help_pages_show_their_node(server, ours):
    """Pictures, in contrast to links, are looked for beside the page."""
    for name in ours:
        assert f"]({name}.jpg)" in (DOCS / f"{name}.md").read_text(encoding="utf-8")
        picture = server.get(f"/extensions/multitalk-nodes/docs/{name}.jpg")
        assert picture.startswith(b"\xff\xd8") and len(picture) < 40_000


def test_help_pages_name_other_nodes_by_their_display_names(ours):
    titles = {info["display_name"] for info in ours.values()}
    for file in DOCS.glob("*.md"):
        named = set(re.findall(r"\*(MultiTalk [^*]+)\*", file.read_text(encoding="utf-8").split("## See also")[1]))
        assert named, file.name
        assert named <= titles, f"{file.name} names {named - titles}"


def test_every_node_is_described_and_in_its_category(ours):
    for name, info in ours.items():
        assert info["category"] == "MultiTalk", name
        assert info["description"], name
        assert info["display_name"].startswith("MultiTalk "), name


def test_every_input_has_a_tooltip(ours):
    without = [
        f"{name}.{slot.name}" for name, info in ours.items() for slot in slots(info) if slot.in_prompt and not slot.options.get("tooltip")
    ]
    assert without == []


def test_help_is_served_where_the_editor_looks_for_it(server, ours):
    """First by language; older ones, and the page itself, without."""
    for name in ours:
        page = (DOCS / f"{name}.md").read_bytes()
        assert page.startswith(b"# MultiTalk ")
        for path in (f"{name}/en", f"{name}/zh", name):
            assert server.get(f"/extensions/multitalk-nodes/docs/{path}.md") == page
    for nobody in ("Nobody/en", "..%2F..%2FREADME/en"):
        with pytest.raises(tools.ServerError, match="404"):
            server.get(f"/extensions/multitalk-nodes/docs/{nobody}.md")
