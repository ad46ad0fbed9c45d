"""Who speaks when: as text, as subtitles, by channels, in turn; and that what is heard adds up to what was recorded."""

import sys

import pytest
import torch

from multitalk_nodes.multitalk_core.audio.sound import mix
from multitalk_nodes.multitalk_core.errors import AudioError
from multitalk_nodes.multitalk_core.notes import noting
from multitalk_nodes.multitalk_core.people.dialogue import at_once, dialogue
from multitalk_nodes.multitalk_core.people.speech import speech_only
from multitalk_nodes.multitalk_core.people.timeline import Timeline, TimelineError, Turn, own_track, parse_names, parse_turns, spans
from multitalk_nodes.multitalk_core.pictures.people import ALARM, timeline_picture

RATE = 8000

SRT = """1
00:00:00,500 --> 00:00:03,200
Anna: Hello
and more

2
00:00:03,200 --> 00:00:05,000
[Ben] Hi

3
00:00:06,000 --> 00:00:07,000
again
"""
VTT = """WEBVTT

00:00.500 --> 00:03.200
<v Anna>Hello</v>

00:03.200 --> 00:05.000
<v.loud Ben>Hi

00:06.000 --> 00:07.000
again
"""
ASS = """[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
Dialogue: 0,0:00:00.50,0:00:03.20,Default,Anna,0,0,0,,Hello
Dialogue: 0,0:00:03.20,0:00:05.00,Default,Ben,0,0,0,,Hi
Dialogue: 0,0:00:06.00,0:00:07.00,Default,Ben,0,0,0,,again
"""


def noise(seconds, channels=1, seed=0):
    return 0.2 * torch.randn(channels, round(seconds * RATE), generator=torch.Generator().manual_seed(seed)), RATE


def turns(text, seconds=10.0, names=()):
    return [(t.speaker, t.start, t.stop) for t in parse_turns(text, seconds, names).turns]


@pytest.mark.parametrize(
    "text",
    [
        "A: 0-3.2, B: 3.2-7",
        "A: 0 - 3.2s\nB: 3.2s – 7s",
        "1: 0-3.2; 2: 3.2-7",
        "B: 3.2-7, A: 0-3.2",
        "Anna:0-0:03.2,Ben:0:03.2-7",
        "A: 0 to 3.2\nB: 3.2 to 7",
    ],
)
def test_turns_as_people_write_them(text):
    assert turns(text) == [(0, 0, 3.2), (1, 3.2, 7)]


def test_a_time_without_a_name_is_the_same_speaker_s_and_a_missing_end_is_the_end():
    assert turns("Anna: 0-1, 2-3\nBen: 3-") == [(0, 0, 1), (0, 2, 3), (1, 3, 10)]
    assert turns("A: 1:30-2:00", seconds=3600) == [(0, 90, 120)]
    assert turns("A: 8-15") == [(0, 8, 10)]


def test_names_given_from_left_to_right_count_the_speakers():
    assert turns("Ben: 0-1, anna: 1-2", names=["Anna", "Ben"]) == [(1, 0, 1), (0, 1, 2)]
    assert turns("Ben: 0-1, Anna: 1-2") == [(0, 0, 1), (1, 1, 2)]
    with pytest.raises(TimelineError, match="Cleo speaks, but the names are Anna, Ben"):
        turns("Cleo: 0-1", names=["Anna", "Ben"])
    with pytest.raises(TimelineError, match="a name twice"):
        parse_names("Anna, anna")


@pytest.mark.parametrize("text", [SRT, VTT, ASS], ids=["srt", "vtt", "ass"])
def test_subtitles_with_speakers_names(text):
    pytest.importorskip("pysubs2")
    timeline = parse_turns(text, 10.0)
    assert timeline.names == ("Anna", "Ben")
    assert [(t.speaker, t.start, t.stop) for t in timeline.turns] == [(0, 0.5, 3.2), (1, 3.2, 5.0), (1, 6.0, 7.0)]


def test_subtitles_without_pysubs2_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pysubs2", None)
    with pytest.raises(ImportError, match="pip install pysubs2"):
        parse_turns(SRT, 10.0)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Nobody is said to speak"),
        ("hello", "'hello' does not say who speaks when"),
        ("0-3", "'0-3' does not say who speaks when"),
        ("A: 3-2", "ends before it begins"),
        ("A: 12-13", "the audio ends at 10.00 s"),
        ("A: 0-3, B 3-4", "'B 3-4' does not say"),
    ],
)
def test_what_says_nothing_is_quoted(text, why):
    with pytest.raises(TimelineError, match=why):
        parse_turns(text, 10.0)


def subtitle(*lines):
    times = [f"00:00:{i:02},000 --> 00:00:{i:02},900" for i in range(len(lines))]
    return "\n\n".join(f"{i}\n{time}\n{line}" for i, (time, line) in enumerate(zip(times, lines, strict=True), start=1)) + "\n"


@pytest.mark.parametrize("line", ["It is 12:30 now", "see http://x", "[laughs]", "nothing more"])
def test_speech_is_not_taken_for_a_name(line):
    pytest.importorskip("pysubs2")
    assert parse_turns(subtitle("Anna: Hello", line), 10.0).names == ("Anna",)


@pytest.mark.parametrize("line", ["<i>Anna: hi</i>", "{\\an8}Anna: hi", "<b>Anna:</b> hi", "- Anna: hi", "[Anna] hi"])
def test_a_name_is_found_within_markup(line):
    pytest.importorskip("pysubs2")
    assert parse_turns(subtitle(line), 10.0).names == ("Anna",)


def spoken(*lines, names=()):
    """Who speaks each subtitle (a second long), and what is noted."""
    pytest.importorskip("pysubs2")
    with noting() as notes:
        timeline = parse_turns(subtitle(*lines), 100.0, names)
    return [timeline.names[turn.speaker] for turn in timeline.turns], notes


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        ("Speaker 1: Hi", "Speaker 2: Ho", "Speaker 1, Speaker 2"),
        ("Guest 1: Hi", "Guest 2: Ho", "Guest 1, Guest 2"),
        ("[SPEAKER_00]: Hi", "SPEAKER_01: Ho", "SPEAKER_00, SPEAKER_01"),  # whisperX
        ("(speaker 0) Hi", "(speaker 1) Ho", "speaker 0, speaker 1"),  # whisper.cpp
        ("Speaker 1\nHi there", "Speaker 2\nHo", "Speaker 1, Speaker 2"),  # Premiere
        (">> ANNA: Hi", ">> BEN: Ho", "ANNA, BEN"),  # YouTube
        ("(Ben) Hi", "(Anna) Ho", "Ben, Anna"),
        ("[Ben]\nHi", "[Anna]\nHo", "Ben, Anna"),
        ("BEN (O.S.): Hi", "ANNA (CONT'D): Ho", "BEN, ANNA"),
        ("Ben:Hi", "Anna:Ho", "Ben, Anna"),
        ("Ben：Hi", "Ａｎｎａ：Ho", "Ben, Anna"),
        ("张三：你好", "【李四】好", "张三, 李四"),
        ("说话人1：你好", "说话人2：好", "说话人1, 说话人2"),
        ("The Old Man From Downstairs: Hi", "Interviewer: Ho", "The Old Man From Downstairs, Interviewer"),
        ("Dr. Smith: Hi", "J. K.: Ho", "Dr. Smith, J. K."),
        ("R2-D2: Hi", "O'Brien: Ho", "R2-D2, O'Brien"),
        ("MAN #1: Hi", "MAN #2: Ho", "MAN #1, MAN #2"),
        ("\u200eBen:\u00a0Hi", "\u202bAnna: Ho", "Ben, Anna"),
        ("Élodie: Hi", "Jean-Luc: Ho", "Élodie, Jean-Luc"),
        ("Anna: It is: so", "Ben: Why: so", "Anna, Ben"),
        ("[sighs] Ben: Hi", "[laughs] [Anna] Ho", "Ben, Anna"),
    ],
)
def test_labels_as_people_and_tools_write_them(first, second, names):
    assert spoken(first, second) == (names.split(", "), [])


def test_one_person_in_capitals_and_not_is_one():
    assert spoken("BEN (V.O.): Hi", "Ben: Ho", "ben: yo") == (["BEN"] * 3, [])


@pytest.mark.parametrize(
    "line", ["Note this: we go", "He said: yes", "It's 10:30", "https://example.org", "3:1 for us", "(music)", "One: go"]
)
def test_speech_goes_on_with_the_speaker_before_and_that_is_said(line):
    who, (said,) = spoken("Anna: Hi", "Ben: Ho", "Anna: Hi", line)
    assert who == ["Anna", "Ben", "Anna", "Anna"]
    assert "3.0 s" in said and line in said and "goes on" in said


def test_a_single_beginning_that_may_be_speech_is_said():
    who, (said,) = spoken("Anna: Hi", "Anna: Ho", "Tomorrow: rain", "yes")
    assert who == ["Anna", "Anna", "Tomorrow", "Tomorrow"] and "'Tomorrow' may be speech" in said


def test_a_long_label_in_small_letters_counts_when_it_comes_again():
    assert spoken("Man in the red hat: Hi", "Anna: Ho", "Man in the red hat: yo")[0] == ["Man in the red hat", "Anna", "Man in the red hat"]
    assert spoken("Anna: Hi", "Anna: Ho", "Man in the red hat: yo")[0] == ["Anna"] * 3


def test_several_in_one_subtitle_share_its_time_by_what_they_say():
    pytest.importorskip("pysubs2")
    with noting() as notes:
        timeline = parse_turns(subtitle("Anna: one two\n- Ben: one two three four"), 10.0)
    assert [(turn.speaker, turn.start) for turn in timeline.turns] == [(0, 0.0), (1, pytest.approx(0.9 * 7 / 25))]
    assert "several speak in one subtitle" in notes[0]


def test_two_who_speak_together_both_speak():
    assert spoken("Anna: Hi", "Ben: Ho", "ANNA & BEN: yo")[0] == ["Anna", "Ben", "Anna", "Ben"]
    assert spoken("Anna: Hi", "Ben: Ho", "[BOTH] yo")[0] == ["Anna", "Ben", "Anna", "Ben"]


def test_where_only_changes_are_marked_two_take_turns_and_that_is_said():
    who, (said,) = spoken("Hi [SPEAKER_TURN]", "Ho", "ho [SPEAKER_TURN]", "hi", names=["Anna", "Ben"])
    assert who == ["Anna", "Ben", "Ben", "Anna"] and "is a guess" in said
    assert spoken("- Hi\n- Ho", names=["Anna", "Ben"])[0] == ["Anna", "Ben"]
    with pytest.raises(TimelineError, match="'Ho' does not say who speaks"):
        spoken("Anna: Hi", "Ben: Hi", "Cleo: Hi", ">> Ho")


def test_a_tool_s_label_that_is_not_among_the_names_is_refused():
    with pytest.raises(TimelineError, match="SPEAKER_01 speaks, but the names are Anna, Ben"):
        spoken("Anna: Hi", "SPEAKER_01: Ho", names=["Anna", "Ben"])


@pytest.mark.parametrize(
    "text",
    ["A：0－3.2，B：3.2－7", "A: 0~3.2、B: 3.2〜7", "A:0,0-3,2; B:3,2-7,0", "Ａ：０-３.２；Ｂ：３.２-７", "A: 0 until 3.2, B: 3.2 − 7"],
)
def test_lists_with_other_signs(text):
    assert turns(text) == [(0, 0, 3.2), (1, 3.2, 7)]


def test_start_times_that_can_be_read_in_two_ways_are_refused_with_both():
    two = [noise(1), noise(1)]
    assert [turn.start for turn in at_once(two, "0, 8", ())[0].turns] == [0, 8]
    assert [turn.start for turn in at_once(two, "0，8.5", ())[0].turns] == [0, 8.5]
    assert [turn.start for turn in at_once(two[:1], "0,8", ())[0].turns] == [0.8]
    with pytest.raises(TimelineError, match="Write '0; 8' or '0.8'"):
        at_once(two, "0,8", ())


def test_with_names_only_those_are_names():
    pytest.importorskip("pysubs2")
    text = subtitle("Anna: Hello", "One thing: no", "Ben: yes")
    assert [t.speaker for t in parse_turns(text, 10.0, ["Anna", "Ben"]).turns] == [0, 0, 1]


def test_subtitles_after_the_end_and_empty_ones_are_left_out():
    pytest.importorskip("pysubs2")
    empty = "\n9\n00:00:00,500 --> 00:00:00,500\nAnna: x\n"
    assert len(parse_turns("\ufeff" + subtitle("Anna: a", "b", "credits") + empty, 1.5).turns) == 2
    with pytest.raises(TimelineError, match="the audio ends"):
        parse_turns(subtitle("", "Anna: a").split("\n\n", 1)[1], 0.5)


def test_a_subtitle_without_any_name_is_quoted():
    pytest.importorskip("pysubs2")
    with pytest.raises(TimelineError, match="'Hello' does not say who speaks"):
        parse_turns("1\n00:00:00,000 --> 00:00:03,200\nHello\n", 10.0)


def test_a_timeline_s_text_is_read_again():
    timeline = parse_turns("Anna: 0-3.2, Ben: 3-7, 8-9.0004", 10.0)
    again = parse_turns(timeline.text, 10.0)
    assert again.names == timeline.names and [t.start for t in again.turns] == [t.start for t in timeline.turns]
    assert all(0 <= new.stop - old.stop <= 0.001 for new, old in zip(again.turns, timeline.turns, strict=True))
    assert timeline.overlaps() == [(3.0, 3.2)]
    odd = Timeline(("Smith, John: Dr.", "B"), (Turn(0, 0.0004, 0.9997), Turn(1, 0.998, 1.0)))
    assert [(t.speaker, t.start, t.stop) for t in parse_turns(odd.text, 1.0).turns] == [(0, 0.0, 1.0), (1, 0.998, 1.0)]


def test_overlaps_of_three_are_joined_and_touching_turns_are_none():
    three = Timeline(("A", "B", "C"), (Turn(0, 0, 4), Turn(1, 1, 3), Turn(2, 2, 6)))
    assert three.overlaps() == [(1, 4)]
    assert Timeline(("A", "B"), (Turn(0, 0, 4), Turn(1, 4, 6))).overlaps() == []


def test_a_track_of_one_s_own_is_silent_elsewhere_and_has_no_clicks():
    sound, rate = torch.ones(2, RATE), RATE
    track, _ = own_track((sound, rate), [Turn(0, 0.25, 0.5), Turn(0, 0.75, 5.0)])
    assert not track[:, : RATE // 4].any() and not track[:, RATE // 2 : RATE * 3 // 4].any()
    assert (track[:, RATE // 4 + 50 : RATE // 2 - 50] == 1).all()
    assert track.diff(dim=1).abs().max() < 0.05


def played(made):
    return mix([s.sound for s in made.speakers if s.sound], "parallel")


def test_one_recording_is_shared_out_and_played_once():
    recording = noise(8, channels=2)
    made = dialogue([recording], "who speaks when", "A: 0.5-3.2, B: 3.0-6\nA: 7-")
    first, second = made.speakers
    assert [first.name, second.name, first.start, second.start] == ["A", "B", 0.0, 0.0]
    assert first.waveform[:, RATE * 31 // 10].any() and second.waveform[:, RATE * 31 // 10].any()  # both hear where both speak
    assert not first.waveform[:, RATE * 4].any() and not second.waveform[:, RATE * 7].any()
    assert torch.equal(played(made)[0], recording[0]) and torch.equal(made.sound[0], recording[0])


def test_what_nobody_says_is_played_whatever_channels_there_are():
    recording = noise(4, channels=6)
    made = dialogue([recording], "who speaks when", "A: 1-2, B: 2-3")
    assert torch.equal(played(made)[0], recording[0])


def test_channels_are_speakers_and_the_recording_is_played_once():
    left, right = noise(2)[0], torch.nn.functional.pad(noise(1, seed=1)[0], (RATE, 0))
    made = dialogue([(torch.cat([left, right]), RATE)], "channels", names="Anna, Ben")
    assert [s.waveform.shape[0] for s in made.speakers] == [1, 1]
    assert torch.equal(played(made)[0], torch.cat([left, right]))
    (turn,) = made.timeline.of(1)
    assert abs(turn.start - 1) <= 0.08 and turn.stop == 2
    with pytest.raises(AudioError, match="mono"):
        dialogue([noise(1)], "channels")


def test_channels_of_one_sound_are_said():
    left = noise(2)[0]
    with noting() as notes:
        dialogue([(torch.cat([left, 0.5 * left]), RATE)], "channels")
    assert "nearly the same sound" in notes[0]


@pytest.mark.parametrize("hertz", [0, 50, 60])
def test_an_offset_or_a_hum_on_a_channel_is_nobody_speaking(hertz):
    """As loud as a fifth of the voice, all the time."""
    seconds = torch.arange(2 * RATE) / RATE
    left, right = noise(2)[0], torch.nn.functional.pad(noise(1, seed=1)[0], (RATE, 0))
    soiled = right + 0.02 * torch.cos(2 * torch.pi * hertz * seconds)
    clean, made = (dialogue([(torch.cat([left, other]), RATE)], "channels").timeline.of(1) for other in (right, soiled))
    assert [(turn.start, turn.stop) for turn in made] == [(turn.start, turn.stop) for turn in clean]


def test_four_channels_are_four_speakers_at_their_own_level():
    quiet = 0.1 * noise(1, channels=4)[0]  # louder ones are scaled down as a whole
    made = dialogue([(quiet, RATE)], "channels")
    torch.testing.assert_close(played(made)[0], quiet.sum(dim=0, keepdim=True), atol=1e-6, rtol=0)


def test_clips_in_turn_with_a_pause():
    clips = [noise(1), noise(2, seed=1), noise(1, seed=2)]
    made = dialogue(clips, "in turn", "A, B, a", pause=0.5)
    assert [(t.speaker, t.start, t.stop) for t in made.timeline.turns] == [(0, 0, 1), (1, 1.5, 3.5), (0, 4, 5)]
    assert torch.equal(made.speakers[0].waveform[:, 4 * RATE :], clips[2][0])
    assert made.sound[0].shape[-1] == 5 * RATE == made.speakers[1].waveform.shape[-1]
    torch.testing.assert_close(made.sound[0], made.speakers[0].waveform + made.speakers[1].waveform)


def test_clips_at_once_begin_when_they_are_told_to():
    made = dialogue([noise(1), noise(2, seed=1)], "at once", "0.5", names="Anna, Ben")
    assert made.timeline.text == "Ben: 0.000-2.000\nAnna: 0.500-1.500"
    assert made.timeline.overlaps() == [(0.5, 1.5)]


def test_names_in_turn_come_in_the_order_in_which_they_speak():
    made = dialogue([noise(1), noise(1, seed=1), noise(1, seed=2)], "in turn", "Ben; Anna; ben")
    assert made.timeline.names == ("Ben", "Anna")
    assert parse_turns("Ben: 0-1, Anna: 1-2, Ben: 2-3", 5.0).names == ("Ben", "Anna")


def test_somebody_named_who_never_speaks_is_silent():
    made = dialogue([noise(1)], "in turn", "Anna", names="Anna, Ben")
    assert made.speakers[1].waveform is None and made.speakers[1].name == "Ben" and made.speakers[1].sound is None


@pytest.mark.parametrize(
    ("clips", "mode", "when", "names", "why"),
    [
        (0, "in turn", "", "", "No audio is connected"),
        (2, "in turn", "A, B, A", "", "2 clips are connected, but 3 speakers"),
        (2, "in turn", "A, Zoe", "A, B", "Zoe speaks, but the names are A, B"),
        (1, "at once", "99999999", "", "ten hours"),
        (1, "at once", "0, 1", "", "2 start times are given for 1 clips"),
        (1, "at once", "soon", "", "'soon' is no start time"),
        (2, "who speaks when", "A: 0-1", "", "takes one recording of everybody"),
        (5, "at once", "", "", "There are 5 speakers and 4 names"),
        (2, "at once", "", "Anna", "There are 2 speakers and 1 names"),
        (1, "sideways", "", "", "mode 'sideways' is not known"),
    ],
)
def test_what_cannot_be_a_dialogue_is_told(clips, mode, when, names, why):
    with pytest.raises((TimelineError, AudioError), match=why):
        dialogue([noise(1, seed=i) for i in range(clips)], mode, when, names=names)


def test_cleaning_changes_what_is_heard_and_not_what_is_played():
    made = dialogue([noise(2)], "in turn", clean=lambda sound: (0 * sound[0], sound[1]))
    assert not made.speakers[0].waveform.any()
    assert torch.equal(made.speakers[0].sound[0], noise(2)[0])


def test_speech_is_found_in_noise_and_torch_keeps_its_threads():
    pytest.importorskip("silero_vad")
    from multitalk_nodes.multitalk_core.audio.files import read_sound
    from multitalk_nodes.tests.support.graphs import SAMPLES

    threads = torch.get_num_threads()
    voice, rate = read_sound(SAMPLES / "voice_1.wav")
    hiss = 0.003 * torch.randn(voice.shape[0], rate * 2, generator=torch.Generator().manual_seed(0))
    sound = torch.cat([hiss, voice, hiss], dim=1)
    clean, _ = speech_only((sound, rate))
    assert clean.shape == sound.shape and torch.get_num_threads() == threads
    assert not clean[:, : rate * 3 // 2].any() and not clean[:, -rate * 3 // 2 :].any()
    kept = clean[:, 2 * rate : -2 * rate].square().sum() / voice.square().sum()
    assert kept > 0.9


def test_without_silero_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "silero_vad", None)
    with pytest.raises(ImportError, match="pip install silero-vad"):
        speech_only(noise(1))


def test_gaps_of_a_curve_are_closed_when_short():
    active = torch.zeros(50)
    active[5:10] = active[14:20] = active[40:] = 1
    assert spans(active, 25) == [(0.2, 0.8), (1.6, 2.0)]


def test_the_picture_has_a_lane_for_everybody_and_a_red_band_over_overlaps():
    made = dialogue([noise(1), noise(2, seed=1)], "at once", "0.5")
    picture = timeline_picture(made.timeline, made.tracks, 2.0)
    red = (picture == torch.tensor(ALARM) / 255).all(dim=-1).any(dim=0).nonzero()
    assert picture.shape[-1] == 3 and picture.shape[0] > 200
    assert abs(float(red.min()) / picture.shape[1] - 0.25) < 0.03 and abs(float(red.max()) / picture.shape[1] - 0.75) < 0.03
