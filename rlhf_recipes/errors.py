"""The exception for mistakes of the user."""


class RecipeError(ValueError):
    """A mistake in what the user wrote or gave; shown without a traceback, exit status 2.

    >>> from rlhf_recipes import RecipeError, load_prepared
    >>> try:
    ...     load_prepared("no/such/folder")
    ... except RecipeError as error:
    ...     print(str(error).partition(",")[0])
    `dataset_name` is no/such/folder
    """
