"""MultiTalk and InfiniteTalk as published, on torch alone: nothing here knows ComfyUI.

On the ground floor lies the paper. `model` and `guidance` are the equations, `schedule` the noise levels, `families` how the models
differ, `windows` which frames make up a clip, `generate` the loop over clips, `step_cache` the steps that may be skipped, `presets`
the recommended settings. `sizes` and `colour` fit pictures; `clock`, `files`, `errors` and `notes` serve everybody.

The wings: `audio` (sound files to embeddings), `people` (who speaks, when and where), `video` (long videos on the disk), `weights`
(weight files), `lipsync` (do mouths follow voices), `pictures` (drawings for the nodes), `upkeep` (the installation).
"""
