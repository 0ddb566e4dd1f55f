"""Fixed-point recurrent language models for fairseq.

Importing the package, or a module of it, changes nothing elsewhere. ``--user-dir
fairseq_fixedpoint`` registers its models, criterions and tasks with fairseq; in code of your own
:func:`register` does. Without fairseq, everything outside `plugin` works.
"""

__version__ = "0.1.0"


def register() -> None:
    """Registers the plugin with fairseq, as ``--user-dir`` does; once, however often it is called.

    Raises:
        ImportError: if fairseq cannot be imported.
    """
    from fairseq_fixedpoint.plugin import registration

    registration.register()
