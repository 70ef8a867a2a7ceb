"""Operations of the administrator: configuration, backup, checks."""
