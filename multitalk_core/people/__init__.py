"""Who speaks, when and where: speakers, places, turns, subtitles, and the voices that result."""
