"""Work that several processes share: they fill one folder, and each file is made by one of them.

`units.py` is one process: it claims a unit, skips what is done or claimed by others, makes the rest, and waits.
`workers.py` starts several such processes on this machine, `cluster.py` on a Ray cluster. The processes do not talk to
each other: the files and the claims in the folder are all that they share. So a process that dies costs only the unit
that it was making, and the same command, started again, makes what is missing.
"""
