"""The machine: files, processes, signals, devices, the terminal."""
