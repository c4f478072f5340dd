"""Work that runs beside the calls: sweeper, roll-ups, partitions, nightly recompute."""
