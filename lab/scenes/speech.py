"""Speech that the demo's model is trained and measured on: espeak-ng saying ordinary words, and what may disturb it.

Everything is made here, from a wheel and a seed, so a fresh machine makes the same sound. Words, languages and voices of the split
"held_out" are never said in the split "train".

Shapes: N samples at 16 kHz, mono, float32 in -1…1 unless something else is said.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from ...multitalk_core.audio.sound import resample
from ...multitalk_core.clock import SAMPLE_RATE

if sys.platform == "win32":
    from _ctypes import FreeLibrary as _unload
else:
    from _ctypes import dlclose as _unload

Split = Literal["train", "held_out"]
Option = TypeVar("Option")

# espeak-ng's files of languages ("en" is British) → what is said in them
WORDS: dict[Split, dict[str, str]] = {
    "train": {
        "en-us": """water mother little house garden people summer number window paper yellow morning river table family letter story money
            because under never always again together walking eating happy green bread apple mountain picture question answer music kitchen
            remember beautiful seven children""",
        "en": """weather brother castle village holiday corner bottle ladder pocket station journey shoulder farmer basket cousin teacher
            winter purple silver gentle quickly perhaps without between running singing laughing open early heavy round smooth butter orange
            island evening thousand breakfast umbrella neighbour""",
        "de": """Wasser Mutter Fenster Garten Straße Kinder Morgen Himmel Freund Schule Blume Wagen Zeitung Küche Frühling Brücke Schlüssel
            Apfel Vogel Stunde heute gestern immer wieder zusammen langsam schön grün müde fröhlich laufen sprechen schreiben warten kaufen
            zwischen vielleicht natürlich Geschichte Wochenende""",
        "fr": """maison jardin fenêtre soleil matin enfant école voiture chemin oiseau fleur montagne rivière cuisine fromage chaise lumière
            bonjour toujours jamais demain ensemble peut-être beaucoup petit grande rouge heureux manger parler écouter marcher chanter
            regarder pourquoi aujourd'hui quatre semaine histoire musique""",
        "es": """agua madre ventana jardín calle niño mañana cielo amigo escuela puerta camino pájaro montaña ciudad cocina queso silla
            verano zapato siempre nunca ahora juntos despacio hermoso verde cansado alegre comer hablar escribir esperar comprar caminar
            entonces quizás cuatro historia palabra""",
        "it": """acqua padre finestra giardino strada bambino mattina luce amico scuola fiore macchina uccello montagna città cucina pane
            sedia estate scarpa sempre domani adesso insieme piano bello giallo stanco allegro mangiare parlare scrivere aspettare comprare
            camminare allora forse quattro famiglia parola""",
        "nl": """huis moeder venster tuin straat kinderen ochtend hemel vriend bloem fiets krant keuken lente brug sleutel appel vogel uur
            vandaag gisteren altijd opnieuw samen langzaam mooi groen vrolijk lopen spreken schrijven wachten kopen tussen misschien
            natuurlijk geschiedenis weekend zeven water""",
        "pl": """dom matka okno ogród ulica dziecko ranek niebo przyjaciel szkoła kwiat samochód gazeta kuchnia wiosna most klucz jabłko
            ptak godzina dzisiaj wczoraj zawsze znowu razem powoli piękny zielony zmęczony wesoły biegać mówić pisać czekać kupować między
            może oczywiście historia tydzień""",
        "fi": """talo äiti ikkuna puutarha katu lapsi aamu taivas ystävä koulu kukka auto lehti keittiö kevät silta avain omena lintu tunti
            tänään eilen aina taas yhdessä hitaasti kaunis vihreä väsynyt iloinen juosta puhua kirjoittaa odottaa ostaa välissä ehkä
            tietysti tarina viikko""",
        "ro": """casă mamă fereastră grădină stradă copil dimineață cer prieten școală floare mașină ziar bucătărie primăvară pod cheie măr
            pasăre oră astăzi ieri mereu iarăși împreună încet frumos verde obosit vesel alerga vorbi scrie aștepta cumpăra între poate
            desigur poveste săptămână""",
    },
    "held_out": {
        "en-us-nyc": """winner blanket pepper hammer dollar finger monkey tiger guitar tomato potato curtain lemon carpet market soldier
            doctor problem animal planet hungry empty narrow lucky modern swimming dancing sleeping reading forward inside almost later
            suddenly twenty million afternoon elephant hospital camera""",
        "en-gb-x-rp": """feather sister bridge forest candle mirror ticket barrel cottage rabbit turnip pudding thunder whistle engine
            captain stranger meadow saddle honey crimson narrowly clever proud ancient silent building painting whisper gather beyond
            already seldom nothing fourteen Saturday library adventure vegetable photograph""",
        "pt": """janela chuva manhã irmão vizinho mulher coração sorriso trabalho viagem livro cadeira cozinha queijo sapato inverno praia
            peixe laranja cavalo hoje ontem cedo devagar bonito vermelho cansada feliz comida falar escrever estrela depois
            também dezoito domingo cidade palavra pássaro amanhã""",
        "sv": """flicka pojke fönster trädgård gata sjö himmelen vän skola blomma bil tidning kök vår nyckel äpple fågel timme idag igår
            alltid igen tillsammans långsamt vacker grön trött glad springa tala skriva vänta köpa mellan kanske naturligtvis berättelse
            vecka sjutton smörgås""",
        "tr": """ev anne pencere bahçe sokak çocuk sabah gökyüzü arkadaş okul çiçek araba gazete mutfak ilkbahar köprü anahtar elma kuş saat
            bugün dün daima yine birlikte yavaş güzel yeşil yorgun mutlu koşmak konuşmak yazmak beklemek almak arasında belki elbette
            hikâye hafta""",
    },
}
# espeak-ng's variants: other throats for the same language; "" is the language's own
VARIANTS: dict[Split, tuple[str, ...]] = {
    "train": ("", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "f1", "f2", "f3", "f4"),
    "held_out": ("m8", "f5", "Andy", "Annie", "Michael", "edward", "linda", "shelby", "steph", "travis", "klatt4"),
}
RATES = (110, 190)  # words a minute
PITCHES = (20, 80)  # espeak-ng's 0…99
SENTENCE = (2, 6)  # words
FIRST_PAUSE = (0.0, 0.6)  # s, before an utterance's first phrase
PAUSE = (0.15, 0.9)  # s, between phrases
AUDIBLE = 0.003  # amplitude; espeak-ng's own silence around a phrase is below
PEAK = 0.99  # amplitude; what is louder is scaled down to it
FULL_SCALE = 32768  # of 16-bit samples

# espeak-ng's speak_lib.h
ESPEAK_RATE = 22050  # Hz
SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS
DONT_EXIT = 0x8000  # espeakINITIALIZE_DONT_EXIT: errors are returned
CHARACTERS, UTF_8 = 1, 1  # POS_CHARACTER, espeakCHARS_UTF8
SPEED, PITCH, WORD_GAP = 1, 3, 7  # espeak_PARAMETER
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)
_one_at_a_time = Lock()  # espeak-ng keeps its state in globals

ACTIVE_FRAME = 320  # samples, 20 ms
ACTIVE = 1e-3  # power relative to the loudest frame: above it a voice speaks
LEVEL_CHANGE = 4.0  # dB, standard deviation of the noise's slow level changes
LEVEL_STEP = 1.0  # s between them
LOWEST = 20.0  # Hz; noise gets no stronger below, so brown noise is no direct current
HARMONICS = 6
CHORDS = ((0, 4, 7), (0, 3, 7), (0, 4, 7, 11), (0, 3, 7, 10))  # semitones above the root
ROOTS = (0, 2, 4, 5, 7, 9)  # semitones above the key, of the chords in a progression


@dataclass(frozen=True)
class Voice:
    """Who speaks, and how."""

    name: str  # espeak-ng's, with a variant after a plus: "en-us+f3"
    rate: float = 150  # words a minute
    pitch: float = 50  # 0…99


@dataclass(frozen=True)
class Corpus:
    """Utterances of one length, read from the disk when they are asked for."""

    samples: np.ndarray  # [count, N] int16

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Tensor:
        """[N] float32"""
        return torch.from_numpy(self.samples[index].astype(np.float32) / FULL_SCALE)


def synthesise(text: str, voice: Voice, word_gap: int = 8) -> Tensor:
    """What espeak-ng says, with the silence that it puts around: [N]. The same call gives the same samples.

    Args:
        word_gap: pause between words in units of 10 ms at 170 words a minute.
    Raises:
        ImportError: espeakng-loader is not installed.
        ValueError: no such voice or variant.
    """
    _check_variant(voice.name)
    chunks: list[bytes] = []

    @_Callback
    def receive(samples: int | None, count: int, _events: int | None) -> int:
        if samples and count > 0:
            chunks.append(ctypes.string_at(samples, 2 * count))
        return 0

    with _one_at_a_time, _engine() as espeak:
        espeak.espeak_SetSynthCallback(receive)
        if espeak.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise ValueError(
                f"espeak-ng has no voice '{voice.name}'. Use a file name of its data folder's lang, such as 'en' (British) or 'de+f3'."
            )
        for parameter, value in ((SPEED, voice.rate), (PITCH, voice.pitch), (WORD_GAP, word_gap)):
            espeak.espeak_SetParameter(parameter, round(value), 0)
        line = text.encode() + b"\0"
        espeak.espeak_Synth(line, ctypes.c_size_t(len(line)), 0, CHARACTERS, 0, UTF_8, None, None)
        espeak.espeak_Synchronize()
    samples = np.frombuffer(b"".join(chunks), np.int16).astype(np.float32) / FULL_SCALE
    return _limited(resample(torch.from_numpy(samples), ESPEAK_RATE, SAMPLE_RATE))


def utterance(random: np.random.Generator, split: Split, seconds: float) -> Tensor:
    """Somebody of the split says phrases of its words, after a first pause and with pauses between: [seconds · 16000].

    The end is cut off wherever it falls.
    """
    language = _any_of(random, list(WORDS[split]))
    variant = _any_of(random, VARIANTS[split])
    voice = Voice(f"{language}+{variant}" if variant else language, round(random.uniform(*RATES)), round(random.uniform(*PITCHES)))
    length = round(seconds * SAMPLE_RATE)
    parts = [_pause(random, *FIRST_PAUSE)]
    while sum(part.shape[0] for part in parts) < length:
        parts += [_trimmed(synthesise(_sentence(random, WORDS[split][language].split()), voice)), _pause(random, *PAUSE)]
    return torch.cat(parts)[:length]


def corpus(folder: Path, split: Split, count: int, seconds: float, seed: int) -> Corpus:
    """`count` utterances, synthesised when they are first asked for and kept in one file of the folder.

    A file that is incomplete, or was made by another version of this module, is not used.
    """
    made_by = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
    file = folder / f"speech-{split}-{count}x{seconds:g}s-seed{seed}-{made_by}.npy"
    shape = (count, round(seconds * SAMPLE_RATE))
    if (samples := _stored(file, shape)) is None:
        _store(file, shape, (utterance(np.random.default_rng([seed, i]), split, seconds) for i in range(count)))
        samples = np.lib.format.open_memmap(file, mode="r")
    return Corpus(samples)


def noise(random: np.random.Generator, samples: int) -> Tensor:
    """White to brown noise whose level changes slowly: [samples], root mean square 1."""
    spectrum = np.fft.rfft(random.standard_normal(samples))
    frequency = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    spectrum *= np.maximum(frequency, LOWEST) ** -random.uniform(0, 1)
    steps = np.arange(0, samples / SAMPLE_RATE + LEVEL_STEP, LEVEL_STEP)
    level = np.interp(np.arange(samples) / SAMPLE_RATE, steps, random.normal(0, LEVEL_CHANGE, len(steps)))
    return _unit(np.fft.irfft(spectrum, samples) * 10 ** (level / 20))


def music(random: np.random.Generator, samples: int) -> Tensor:
    """Four chords over and over, of plucked strings, with a bass and a drum, from any place on: [samples], root mean square 1."""
    beat = round(60 / random.uniform(70, 140) * SAMPLE_RATE)
    levels = tuple(random.uniform(0.2, 1, 3))
    band = _Band(beat, random.uniform(0.2, 0.8), random.uniform(0.3, 0.8), *levels, together=random.random() < 0.5)
    key = random.integers(48, 60)
    bars = [band.bar(random, key + _any_of(random, ROOTS), _any_of(random, CHORDS)) for _ in range(4)]
    first = random.integers(4 * beat)
    out = np.zeros(first + samples)
    for i, start in enumerate(range(0, len(out), 4 * beat)):
        _add(out, start, bars[i % 4])
    return _unit(out[first:])


def disturbed(voice: Tensor, random: np.random.Generator, snr_db: float) -> Tensor:
    """A voice with noise, music or both behind it; a silent voice stays silent.

    Args:
        voice: [N]
        snr_db: power of the voice where it speaks over the mean power of what is added, in dB.
    Returns:
        [N]; where the sum is louder than full scale, all of it is scaled down.
    """
    if voice.ndim != 1:
        raise ValueError(f"The voice has shape {tuple(voice.shape)}; samples [N] were expected. Disturb one voice at a time.")
    level = _active_level(voice)
    if level == 0:
        return voice.clone()
    kind = _any_of(random, ("noise", "music", "both"))
    share = {"noise": 1.0, "music": 0.0, "both": random.uniform(0.2, 0.8)}[kind]
    added = torch.zeros_like(voice)
    if share > 0:
        added += share * noise(random, voice.shape[0])
    if share < 1:
        added += (1 - share) * music(random, voice.shape[0])
    return _limited(voice + level * 10 ** (-snr_db / 20) * added / added.square().mean().sqrt())


def _places() -> tuple[str, Path]:
    """espeak-ng's library and the folder of its data."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise ImportError("Synthesising speech needs espeak-ng: pip install espeakng-loader") from error
    return espeakng_loader.get_library_path(), Path(espeakng_loader.get_data_path())


def _check_variant(name: str) -> None:
    """espeak-ng itself leaves an unknown variant out without a word."""
    _language, plus, variant = name.partition("+")
    if plus and not (_places()[1] / "voices" / "!v" / variant).is_file():
        raise ValueError(f"espeak-ng has no variant '{variant}' for '{name}'. Use one of its data folder's voices/!v, such as 'f3'.")


@contextmanager
def _engine() -> Iterator[ctypes.CDLL]:
    """espeak-ng, newly loaded and seeded.

    Its generator, the phase of its waves and the place in its flutter table go on from one text to the next, and neither
    espeak_Initialize nor the seed resets all of them. Loading takes 0.3 ms.
    """
    library, data = _places()
    espeak = ctypes.CDLL(library)
    try:
        if espeak.espeak_Initialize(SYNCHRONOUS, 0, os.fsencode(data), DONT_EXIT) != ESPEAK_RATE:
            raise RuntimeError(
                f"espeak-ng does not start with its data in {data}. Install it again: pip install --force-reinstall espeakng-loader"
            )
        espeak.espeak_ng_SetRandSeed(ctypes.c_long(1))
        try:
            yield espeak
        finally:
            espeak.espeak_Terminate()
    finally:
        _unload(espeak._handle)


def _sentence(random: np.random.Generator, words: Sequence[str]) -> str:
    count = random.integers(SENTENCE[0], SENTENCE[1] + 1)
    return " ".join(_any_of(random, words) for _ in range(count)) + _any_of(random, ".?!")


def _pause(random: np.random.Generator, shortest: float, longest: float) -> Tensor:
    return torch.zeros(round(random.uniform(shortest, longest) * SAMPLE_RATE))


def _trimmed(voice: Tensor) -> Tensor:
    """From the first to the last audible sample."""
    audible = (voice.abs() > AUDIBLE).nonzero()
    return voice[audible[0, 0] : audible[-1, 0] + 1] if len(audible) else voice[:0]


def _stored(file: Path, shape: tuple[int, int]) -> np.ndarray | None:
    try:
        samples = np.lib.format.open_memmap(file, mode="r")
    except (FileNotFoundError, ValueError):  # ValueError: no header, or fewer samples than it says
        return None
    return samples if samples.shape == shape and samples.dtype == np.int16 else None


def _store(file: Path, shape: tuple[int, int], voices: Iterator[Tensor]) -> None:
    """Writes beside the file and renames, so that nobody reads a half."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        unfinished = Path(folder) / file.name
        samples = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.int16, shape=shape)
        for i, voice in enumerate(voices):
            samples[i] = (voice * FULL_SCALE).round().numpy()
        samples.flush()
        del samples  # Windows renames no file that is mapped
        os.replace(unfinished, file)


@dataclass(frozen=True)
class _Band:
    beat: int  # samples
    decay: float  # s, of the strings
    brightness: float  # amplitude of a harmonic relative to the one below
    chord_level: float
    bass_level: float
    drum_level: float
    together: bool  # the strings of a chord, or one after another

    def bar(self, random: np.random.Generator, root: int, chord: Sequence[int]) -> np.ndarray:
        """Four beats, and two more in which the strings die away. `root` in MIDI's numbering, where 69 is 440 Hz."""
        out = np.zeros(6 * self.beat)
        strings = [self.chord_level * _pluck(root + semitones, 2 * self.beat, self.decay, self.brightness) for semitones in chord]
        bass = 2 * self.bass_level * _pluck(root - 24, 2 * self.beat, 0.5, 0.4)
        for i in range(4):
            start = i * self.beat
            for j, string in enumerate(strings):
                _add(out, start if self.together else start + j * self.beat // len(strings), string)
            if i % 2 == 0:
                _add(out, start, bass)
            _add(out, start, self.drum_level * _drum(random, self.beat, low=i % 2 == 0))
        return out


def _pluck(note: float, samples: int, decay: float, brightness: float) -> np.ndarray:
    """A string: harmonics that die away, the high ones sooner."""
    time = np.arange(samples) / SAMPLE_RATE
    pitch = 440 * 2 ** ((note - 69) / 12)
    out = np.zeros(samples)
    for n in range(1, HARMONICS + 1):
        if n * pitch < SAMPLE_RATE / 2:
            out += brightness ** (n - 1) * np.sin(2 * np.pi * n * pitch * time) * np.exp(-time * n / decay)
    return out * np.minimum(1, time / 0.005)  # no click at the start


def _drum(random: np.random.Generator, samples: int, low: bool) -> np.ndarray:
    time = np.arange(samples) / SAMPLE_RATE
    if low:
        return 3 * np.sin(2 * np.pi * (50 * time + 4 * (1 - np.exp(-time / 0.03)))) * np.exp(-time / 0.1)
    return random.standard_normal(samples) * np.exp(-time / 0.05)


def _add(out: np.ndarray, start: int, sound: np.ndarray) -> None:
    end = min(len(out), start + len(sound))
    out[start:end] += sound[: end - start]


def _active_level(voice: Tensor) -> float:
    """Root mean square of a voice where it speaks, 0 if it never does."""
    padded = torch.nn.functional.pad(voice.double(), (0, -voice.shape[0] % ACTIVE_FRAME))
    power = padded.view(-1, ACTIVE_FRAME).square().mean(dim=1)
    if power.numel() == 0 or power.max() == 0:
        return 0.0
    return power[power > ACTIVE * power.max()].mean().sqrt().item()


def _unit(samples: np.ndarray) -> Tensor:
    return torch.from_numpy(samples / np.sqrt(np.square(samples).mean())).float()


def _limited(samples: Tensor) -> Tensor:
    peak = samples.abs().max().item() if samples.numel() else 0.0
    return samples * (PEAK / peak) if peak > PEAK else samples


def _any_of(random: np.random.Generator, options: Sequence[Option]) -> Option:
    return options[random.integers(len(options))]
