"""Operations of commands and flows that are no steps."""
