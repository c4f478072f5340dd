"""What backups mean: pure functions, standard library only, because they also run on the hosts themselves."""
