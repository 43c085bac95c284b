"""The one exception that stands for a mistake of the user's."""


class RecipeError(ValueError):
    """A mistake in what the user wrote or gave; shown without a traceback, exit status 2."""
