from small_checkpoints import adapted, base, files, tuned  # noqa: F401
