from small_model import inputs, spec, weights  # noqa: F401
