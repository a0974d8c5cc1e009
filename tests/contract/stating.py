"""What holds for every list of variants: names of their own, a module each, a sample, and all that the base class asks for."""

from pytest_induction.variants import unstated


def check_list(kinds, samples):
    """Raise `AssertionError` for a class that does not keep to what every list asks for."""
    names = [kind.name for kind in kinds]
    assert len(set(names)) == len(names), f"names that come twice: {sorted(name for name in names if names.count(name) > 1)}"
    modules = [kind.__module__ for kind in kinds]
    assert len(set(modules)) == len(modules), "two classes of the list share a module"
    for kind in kinds:
        assert not unstated(kind), f"{kind.__name__} does not state {unstated(kind)}"
        assert (
            all("\n" not in text for text in (kind.name, (kind.__doc__ or "").partition("\n")[0]))
            and kind.name == kind.name.strip()
        )
    assert not set(names) ^ set(samples), f"entries without a sample, or samples without an entry: {set(names) ^ set(samples)}"


def check_one_line(error, name=""):
    """Raise `AssertionError` unless a message is one line that says what it is about."""
    said = str(error)
    assert said and "\n" not in said and name in said, f"not one line about {name!r}: {said!r}"
