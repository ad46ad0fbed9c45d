"""Who speaks in subtitles: every form of a label, and what only looks like one. Tests of their own input, in milliseconds."""

import pytest

from multitalk_nodes.multitalk_core.notes import noting
from multitalk_nodes.multitalk_core.people.label_forms import same_person
from multitalk_nodes.multitalk_core.people.timeline import TimelineError, parse_names, parse_turns

pytest.importorskip("pysubs2")

ANNA, BEN = "Anna: Hi", "Ben: Ho"
ASS = (
    "[Script Info]\nScriptType: v4.00+\n\n[V4+ Styles]\nFormat: Name\n\n"
    "[Events]\nFormat: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text\n"
)


def srt(lines):
    times = [f"00:00:{i:02},000 --> 00:00:{i:02},900" for i in range(len(lines))]
    return "\n\n".join(f"{i}\n{time}\n{line}" for i, (time, line) in enumerate(zip(times, lines, strict=True), start=1)) + "\n"


def ass(*lines):
    """(actor, text), a second each."""
    return ASS + "".join(f"Dialogue: 0,0:00:0{i}.00,0:00:0{i}.90,Default,{name},0,0,0,,{text}\n" for i, (name, text) in enumerate(lines))


def read(text, names=()):
    """Who speaks, in order, and what is noted."""
    with noting() as notes:
        timeline = parse_turns(text, 100.0, names)
    return [timeline.names[turn.speaker] for turn in timeline.turns], notes


def spoken(*lines, names=()):
    return read(srt(lines), names)


@pytest.mark.parametrize(
    "line",
    [
        "Ben:Hi",
        "Ben : Hi",
        "Ben ：Hi",
        "Ben:\tHi",
        "\tBen: Hi",
        "ben: Hi",
        "Ben:\nHi",
        "Ben: (laughs)",
        "Ben: It's 10:30",
        "Ben: https://example.org",
        "[Ben] Hi",
        "[ Ben ] Hi",
        "[Ben:] Hi",
        "[Ben]: Hi",
        "[BEN]\nHi",
        "(Ben): Hi",
        "<Ben> Hi",
        "【Ben】Hi",
        "［Ben］Hi",
        "（Ben）Hi",
        "〈Ben〉Hi",
        "BEN (O.S): Hi",
        "BEN (OS): Hi",
        "BEN O.S.: Hi",
        "BEN (V.O.) (CONT'D): Hi",
        "BEN (V.O., filtered): Hi",
        "BEN (CONT’D):\nHi",
        "BEN (V.O.)\nHi",
        "BEN (V.O.) Hi",
        "BEN (on phone): Hi",
        "BEN [whispering]: Hi",
        "[Ben, whispering] Hi",
        "Ben (to Anna): Hi",
        "<b>Ben:</b> Hi",
        "<i><b>Ben</b></i>: Hi",
        '<font color="#ff0">Ben:</font> Hi',
        "{\\i1}Ben:{\\i0} Hi",
        "{\\an8}{\\b1}Ben{\\b0}: Hi",
        "**Ben:** Hi",
        "@Ben: Hi",
        "- Ben: Hi",
        "-Ben: Hi",
        "— BEN: Hi",
        "• Ben: Hi",
        "\u200bBen: Hi",
        "Ben\u200f: Hi",
        "\u2067Ben\u2069: Hi",
        "Ben:\u00a0Hi",
        "Ben\u202f: Hi",
        "Ben:\u3000Hi",
        ">>Ben: Hi",
        ">>> BEN: Hi",
        "≫ BEN: Hi",
        "＞＞ BEN: Hi",
        "&gt;&gt; BEN: Hi",
        "<v.loud Ben>Hi",
        "<V Ben>Hi",
        "[laughs] Ben: Hi",
        "(sighs)\nBen: Hi",
        "[Dramatic Tension]\nBen: Hi",
        "♪ Ben: la la",
        "Anna:\nBen: Hi",
    ],
)
def test_a_label_in_every_form_is_ben_s(line):
    assert spoken(ANNA, BEN, ANNA, line, ANNA) == (["Anna", "Ben", "Anna", "Ben", "Anna"], [])


@pytest.mark.parametrize(
    "label, name",
    [
        ("Dr. Smith:", "Dr. Smith"),
        ("J.K.:", "J.K."),
        ("von der Leyen:", "von der Leyen"),
        ("María José:", "María José"),
        ("Łukasz:", "Łukasz"),
        ("Иван:", "Иван"),
        ("أحمد:", "أحمد"),
        ("דוד:", "דוד"),
        ("ナレーター：", "ナレーター"),
        ("主持人：", "主持人"),
        ("（本）", "本"),
        ("话者A：", "话者A"),
        ("话者1：", "话者1"),
        ("발언자:", "발언자"),
        ("Спикер 1:", "Спикер 1"),
        ("Sprecherin 1:", "Sprecherin 1"),
        ("Man 2:", "Man 2"),
        ("Woman #3 (on radio):", "Woman #3"),
        ("C-3PO:", "C-3PO"),
        ("7of9:", "7of9"),
        ("d'Artagnan:", "d'Artagnan"),
        ("O’Neill-Smith:", "O’Neill-Smith"),
        ("Speaker1:", "Speaker1"),
        ("Speaker A:", "Speaker A"),
        ("Speaker:", "Speaker"),
        ("A:", "A"),
        ("The Old Man Who Lives Just Across The Street:", "The Old Man Who Lives Just Across The Street"),
        # people whose names begin like a sound
        ("Crystal:", "Crystal"),
        ("Bella:", "Bella"),
        ("Mr. Singh:", "Mr. Singh"),
        ("Mr. King:", "Mr. King"),
        ("Engineer:", "Engineer"),
        ("Beatrice:", "Beatrice"),
    ],
)
def test_names_of_all_sorts(label, name):
    line = f"{label} x"
    assert spoken(ANNA, BEN, line, ANNA, BEN, line) == (["Anna", "Ben", name, "Anna", "Ben", name], [])


@pytest.mark.parametrize(
    "line",
    [
        "He's right: go",
        "Then she asked: why",
        "Ben said: go",
        "Three things: a, b",
        "My name is: Jo",
        "Don't: stop",
        "Listen: go",
        "Chapter 1: go",
        "WARNING: mines",
        "As they say: go",
        "At 5 o'clock: go",
        "10:30: go",
        "Ratio 16:9",
        "Genesis 1:1",
        "Hi :)",
        "Ok :-(",
        "C:\\videos",
        "mailto:a@b.example",
        "See https://a.example: go",
        "www.example.org:80 is up",
        '"Ben": he said',
        "他说：好",
        "我想说的是：走吧",
        "[door opens]",
        "[Upbeat Music] la",
        "[Anna laughs]",
        "[SPEAKING GERMAN]",
        "(in German) ja",
        "(APPLAUSE)",
        "[To Ben] x",
        "（音乐）",
        "♪ la la ♪",
        "*sighs*",
        "(speaker ?) hm",  # whisper.cpp cannot tell
        "Ben",  # who is called
    ],
)
def test_what_is_no_label_makes_nobody_new_and_is_told(line):
    who, notes = spoken(ANNA, BEN, ANNA, line, BEN)
    assert who == ["Anna", "Ben", "Anna", "Anna", "Ben"]
    assert len(notes) == 1 and "3.0 s" in notes[0]


@pytest.mark.parametrize("line", ["[Music]", "♪♪", "(upbeat music)", "[♪♪♪]", "（音楽）"])
def test_a_sound_before_anybody_is_nobody_s(line):
    who, (said,) = spoken(line, ANNA, BEN)
    assert who == ["Anna", "Ben"] and "nobody speaks" in said and "may be speech" not in said


def test_all_that_is_a_guess_is_one_note_with_the_first_times_and_how_many_more():
    who, (said,) = spoken(ANNA, BEN, ANNA, BEN, "a", "b", "c", "d", "e")
    assert who[4:] == ["Ben"] * 5
    assert all(time in said for time in ("4.0 s", "5.0 s", "6.0 s")) and "7.0 s" not in said and "2 more" in said


def test_a_name_that_comes_once_among_many_is_told():
    who, (said,) = spoken(ANNA, BEN, ANNA, BEN, "Weather: sunny")
    assert who[-1] == "Weather" and "'Weather' may be speech" in said


@pytest.mark.parametrize(
    "lines, who",
    [
        (["Anna: Hi Ben: Ho", BEN, ANNA], ["Anna", "Ben", "Ben", "Anna"]),
        (["Anna: Hi. Ben: Ho"], ["Anna", "Ben"]),
        (["Ben: It's 3:15. Anna: no"], ["Ben", "Anna"]),
        (["Anna: Hi <i>Ben:</i> Ho", BEN], ["Anna", "Ben", "Ben"]),
        (["Speaker 1: Hi Speaker 2: Ho"], ["Speaker 1", "Speaker 2"]),
        (["[SPEAKER_00]: Hi [SPEAKER_01]: Ho"], ["SPEAKER_00", "SPEAKER_01"]),
        (["[Anna] Hi [Ben] Ho"], ["Anna", "Ben"]),
        (["(Anna) Hi (Ben) Ho"], ["Anna", "Ben"]),
        (["张三：你好 李四：你好", "李四：好"], ["张三", "李四", "李四"]),
        (["【张三】你好【李四】你好"], ["张三", "李四"]),
        ([">> ANNA: Hi >> BEN: Ho"], ["ANNA", "BEN"]),
        (["<v Anna>Hi</v> <v Ben>Ho</v>"], ["Anna", "Ben"]),
        (["- Anna: Hi\n- Ben: Ho"], ["Anna", "Ben"]),
    ],
)
def test_several_labels_in_one_subtitle_share_its_time_and_that_is_told(lines, who):
    found, (said,) = spoken(*lines)
    assert found == who and "several speak in one subtitle" in said


@pytest.mark.parametrize(
    "lines, who",
    [
        (["Anna: Hi. Note: x", BEN, ANNA], ["Anna", "Ben", "Anna"]),
        (["Old Ben: x", ANNA, BEN, "Old Ben: x", ANNA, BEN], ["Old Ben", "Anna", "Ben"] * 2),
        (["Dr. Smith: x", ANNA, "Dr. Smith: x", ANNA], ["Dr. Smith", "Anna"] * 2),
        (["Ann: x", "Anna: y", "Ann: z"], ["Ann", "Anna", "Ann"]),
    ],
)
def test_one_label_is_not_taken_for_two(lines, who):
    assert spoken(*lines) == (who, [])


@pytest.mark.parametrize(
    "names",
    [
        ("BEN", "Ben", "ben"),
        ("Élodie", "ELODIE", "E\u0301lodie"),
        ("O'Brien", "O’Brien", "O´Brien"),
        ("Jean-Luc", "Jean‑Luc", "JEAN LUC"),
        ("R2-D2", "r2d2"),
        ("SPEAKER_00", "Speaker 00", "speaker-00"),
        ("Straße", "STRASSE"),
        ("Ｂｅｎ", "Ben"),
        ("J. K.", "J.K."),
    ],
)
def test_one_person_however_spelled(names):
    assert len({same_person(name) for name in names}) == 1
    with pytest.raises(TimelineError, match="a name twice"):
        parse_names(", ".join(names))


@pytest.mark.parametrize("names", [("Man 1", "Man 2"), ("张三", "李四"), ("कि", "का"), ("?", "!"), ("Ann", "Anna")])
def test_different_people_stay_different(names):
    assert len({same_person(name) for name in names}) == 2


@pytest.mark.parametrize("line", ["Ben - Hi", "Ben – Hi", "Ben> Hi", "Ben | Hi", "“Ben”: Hi", "Ben\nHi", "BEN (V.O.)\nHi", "#Ben: Hi"])
def test_a_name_that_is_given_is_a_label_in_whatever_form(line):
    assert spoken(ANNA, BEN, ANNA, line, names=["Anna", "Ben"]) == (["Anna", "Ben", "Anna", "Ben"], [])


@pytest.mark.parametrize("name, line", [("Music", "[Music] la"), ("BOTH", "[BOTH] la"), ("He", "He: la"), ("Note this", "Note this: la")])
def test_a_name_that_is_given_is_a_name_whatever_it_looks_like(name, line):
    assert spoken(line, ANNA, names=["Anna", name]) == ([name, "Anna"], [])


def test_a_name_before_japanese_quotation_marks():
    assert spoken("太郎「やあ」", "花子「はい」") == (["太郎", "花子"], [])


def test_what_is_not_among_the_names_is_refused_or_told():
    names = ["Anna", "Ben"]
    who, (said,) = spoken(ANNA, "Tomorrow: rain", BEN, names=names)
    assert who == ["Anna", "Anna", "Ben"] and "'Tomorrow' is not among the names" in said
    assert spoken(ANNA, "Ben, come here", BEN, names=names)[0] == ["Anna", "Anna", "Ben"]
    for lines in (["Cleo: x", ANNA], [ANNA, "[SPEAKER_03]: x"], [ANNA, "[Cleo]: x"], [ANNA, "Cleo: x", "Cleo: y"]):
        with pytest.raises(TimelineError, match=r"(SPEAKER_03|Cleo) speaks, but the names are Anna, Ben\. Write"):
            spoken(*lines, names=names)


def test_two_dashes_within_a_line_are_two_people():
    who, (said,) = spoken(ANNA, BEN, "- Hi. - Ho.")
    assert who == ["Anna", "Ben", "Ben", "Anna"] and "2.0 s" in said


def test_both_of_three_are_a_guess():
    assert spoken(ANNA, BEN, "BOTH: x") == (["Anna", "Ben", "Anna", "Ben"], [])
    assert "although two are meant" in spoken(ANNA, BEN, "Cleo: x", "[BOTH] x")[1][0]


@pytest.mark.parametrize(
    "lines, who",
    [
        ([("Anna", "Hi"), ("ANNA (O.S.)", "Hi"), ("Ben", "Anna: x")], ["Anna", "Anna", "Ben"]),
        ([("Anna", "Hi"), ("", "{\\i1}Ben:{\\i0} Hi")], ["Anna", "Ben"]),
        ([("Anna", "Hi"), ("Ben", "Ho"), ("Both", "x")], ["Anna", "Ben", "Anna", "Ben"]),
        ([("Anna; Ben", "x"), ("Anna", "Hi"), ("Ben", "Ho")], ["Anna", "Ben", "Anna", "Ben"]),
    ],
)
def test_actors_of_aegisub(lines, who):
    assert read(ass(*lines)) == (who, [])


@pytest.mark.parametrize(
    ("lines", "who"),
    [
        (["-Anna: hi -Ben: ho"], ["Anna", "Ben"]),
        (["-ANNA: Hi there. -BEN: Hello."], ["ANNA", "BEN"]),
        (["Speaker 1: hi -Speaker 2: ho"], ["Speaker 1", "Speaker 2"]),
        (["Anna: hi, Ben: ho", BEN, ANNA], ["Anna", "Ben", "Ben", "Anna"]),
        (["张三：你好，李四：好"], ["张三", "李四"]),
        (["Anna: hi / Ben: ho"], ["Anna", "Ben"]),
        (["Anna: hi & Ben: ho"], ["Anna", "Ben"]),
        (["Anna: Hi.\n- Hello.", BEN], ["Anna", "Ben", "Ben"]),
    ],
)
def test_two_in_one_subtitle_are_two_however_they_are_parted_and_that_is_said(lines, who):
    found, notes = spoken(*lines)
    assert found == who and "Who speaks is a guess" in notes[0]


def test_a_list_of_names_is_one_label_of_all():
    assert spoken("Anna, Ben, and Clara: Hi", ANNA, BEN, "Clara: Oh")[0] == ["Anna", "Ben", "Clara", "Anna", "Ben", "Clara"]


@pytest.mark.parametrize("line", ["张三（笑）：你好", "张三（哭）：你好"])
def test_an_aside_of_one_sign_is_no_other_person(line):
    assert spoken(line, "李四：好", "张三：是") == (["张三", "李四", "张三"], [])


@pytest.mark.parametrize("people", [("Man (young)", "Man (old)"), ("Anna (Interviewer)", "Anna (Guest)")])
def test_what_stands_in_brackets_parts_people_who_have_no_other_name(people):
    first, second = people
    assert spoken(f"{first}: Hi", f"{second}: Ho", f"{first}: So") == ([first, second, first], [])
    assert spoken("Anna (V.O.): Hi", "Anna (O.S.): Ho", BEN) == (["Anna", "Anna", "Ben"], [])


@pytest.mark.parametrize("credit", ["字幕制作：小明", "Title: My film", "Location: Paris", "Subtitles by: Carl"])
def test_what_stands_before_a_film_is_nobody(credit):
    who, notes = spoken(credit, ANNA, BEN)
    assert who == ["Anna", "Ben"] and "nobody speaks" in notes[0]


def test_whisper_cpps_own_output_is_read():
    text = "[00:00:00.000 --> 00:00:02.000]   (speaker 0) Hi\n[00:00:02.000 --> 00:00:04.500]   (speaker 1) Ho\n"
    assert read(text) == (["speaker 0", "speaker 1"], [])


def test_subtitles_that_end_before_they_begin_are_left_out_and_that_is_said():
    text = srt([ANNA, BEN, ANNA]).replace("00:00:01,000 --> 00:00:01,900", "00:00:01,900 --> 00:00:01,000")
    assert read(text) == (["Anna", "Anna"], ["Subtitles that end before they begin, or at once, are left out: at 1.9 s."])


def test_times_of_whole_seconds_are_read():
    assert read("1\n00:00:00 --> 00:00:02\nAnna: Hi\n\n2\n00:00:02 --> 00:00:04\nBen: Ho\n") == (["Anna", "Ben"], [])


@pytest.mark.parametrize("text", ["Anna 1:10-1:20, Ben 1:20-1:30", "Speaker1 0:00-0:05", "A1:00-1:10", "甲 1:10-1:20，乙 1:20-1:30"])
def test_a_time_right_behind_a_name_is_refused_with_both_readings(text):
    with pytest.raises(TimelineError, match="does not say where the name ends. Write '"):
        read(text)


@pytest.mark.parametrize("together", ["A & B", "A+B", "A/B", "Both", "A and B", "两人"])
def test_a_list_knows_turns_of_several(together):
    assert read(f"{together}: 0-3, A: 3-4, B: 4-5") == (["A", "B", "A", "B"], [])


@pytest.mark.parametrize("form", ["{} (00:01): Hi", "[00:01] {}: Hi", "00:01 {}: Hi", "{}  00:01\nHi", "{} [00:00:01]\nHi"])
def test_times_beside_a_name_are_no_part_of_it(form):
    assert spoken(form.format("Speaker 1"), form.format("Speaker 2")) == (["Speaker 1", "Speaker 2"], [])


def test_names_in_capitals_above_the_text_are_names_beside_a_subtitle_without_one():
    assert spoken("ANNA\nHi", "BEN\nHo", "Go on")[0] == ["ANNA", "BEN", "BEN"]
