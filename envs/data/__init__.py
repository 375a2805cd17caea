"""Recorded data: reading, checking and writing them; numpy and h5py, no torch.

From a file to a batch: `read` finds the file (`catalogue`) and opens the layout that it has
(`formats`, which asks `containers` and `foreign` what the file is). Each layout has a file that
makes one `recording.Recording` of it: `flat` of columns end to end (`ends` says where episodes end,
`successors` which observations behind ends can be true), robomimic, ManiSkill and Minari episode by
episode (`episodes` checks one, `recording.stack` joins them), others by laying their columns out
for `flat` (`columns`). `units` maps actions to [-1, 1], `faults` says what is wrong, `read.mended`
what becomes of it. `envs.datasets` makes batches of the recording; `writing` writes one.
"""
