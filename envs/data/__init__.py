"""Recorded data: reading, checking and writing them; numpy and h5py, no torch.

From a file to a batch: `read` finds the file (`catalogue`) and opens the layout that it has
(`formats`, which asks `containers` and `foreign` what the file is). Each layout has a file that
makes one `recording.Recording` of it. Where rows lie end to end, `columns.EndToEnd` lays them out
(`successors` says which observations behind ends can be true): LeRobot, zarr, ALOHA, and `flat` for
npz and D4RL's layout, once it knows the columns' names and, by `ends`, where episodes end, and
`ogbench_sets`, which has a task's rewards. Where
episodes are kept apart (robomimic, ManiSkill, Minari), `episodes` checks one and `recording.stack`
joins them. `vetting` lets another process (`walker`) look at HDF5 files first, `told` has what
files may say of themselves, `bulk` what they may swell to. `units` maps actions to [-1, 1],
`faults` says what is wrong, `read.mended` what becomes of it. `envs.datasets` makes batches of the
recording; `writing` writes one.
"""
