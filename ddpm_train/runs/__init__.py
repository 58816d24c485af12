"""What a run leaves on a disk, in a mirror and on the Hub."""
