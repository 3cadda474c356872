"""The machine: its IPUs, the processes and replicas on them, and what a pipeline demands."""
