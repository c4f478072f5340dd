"""The long matrix of faults, on a sandbox that `make up` has built and that stays up."""
