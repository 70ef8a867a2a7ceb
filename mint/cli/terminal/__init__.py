"""Output of the commands: progress during the work, tables or JSON at its end."""
