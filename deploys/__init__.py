"""What the fleet becomes: roles, the commands that apply them, and the sandbox."""
