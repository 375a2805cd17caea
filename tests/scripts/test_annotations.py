"""Values against annotations."""

import pytest

from rheo.scripts.config.annotations import coerce, known

FITS = [
    ("int", 3, 3),
    ("int", 1e6, 1_000_000),
    ("float", 3, 3.0),
    ("float", 1e-3, 1e-3),
    ("bool", True, True),
    ("str", "a", "a"),
    ("int | None", None, None),
    ("int | None", 4, 4),
    ("int | float", 4, 4),
    ("int | float", 4.0, 4.0),
    ("float | str", "auto", "auto"),
    ("Optional[int]", None, None),
    ("Union[int, str]", "x", "x"),
    ("Literal['v', 'eps']", "eps", "eps"),
    ("Literal[1, 2]", 2, 2),
    ("Literal[-1]", -1, -1),
    ("typing.Literal['a']", "a", "a"),
    ("list[int]", [1, 2], [1, 2]),
    ("list[float]", [1, 2.5], [1.0, 2.5]),
    ("list[Literal['a', 'b']]", ["a"], ["a"]),
    ("dict[str, float]", {"x": 1}, {"x": 1.0}),
    ("dict", {"x": "y"}, {"x": "y"}),
    ("Any", object, object),
    ("Annotated[int, Range(ge=1)]", 1, 1),
    ("Annotated[float, Range(gt=0, le=1)]", 1, 1.0),
    ("Annotated[int, Range(ge=1)] | None", None, None),
    ("Annotated[int, Range(ge=1)] | str", "a", "a"),
    ("list[Annotated[int, Range(ge=1)]]", [2.0], [2]),
]
REFUSED = [
    ("int", True),
    ("int", 1.5),
    ("int", "3"),
    ("int", None),
    ("float", "1e-3"),
    ("float", True),
    ("bool", 1),
    ("bool", "true"),
    ("str", 3),
    ("str", None),
    ("int | None", "none"),
    ("Literal['v', 'eps']", "V"),
    ("Literal[1]", True),
    ("Literal[1]", 1.0),
    ("list[int]", [1, "2"]),
    ("list[int]", 1),
    ("list[int]", [1.5]),
    ("dict[str, float]", {"x": "1"}),
    ("dict", []),
]


OUTSIDE = [
    ("Annotated[int, Range(ge=1)]", 0, "=0: must be at least 1"),
    ("Annotated[int, Range(ge=0)]", -1, "=-1: must be 0 or more"),
    ("Annotated[float, Range(gt=0)]", 0, "=0: must be above 0"),
    ("Annotated[float, Range(gt=0, le=1)]", 2e6, "=2e+06: must be above 0 and at most 1"),
    ("Annotated[float, Range(gt=0, lt=1)]", 1.0, "=1: must be above 0 and below 1"),
    ("Annotated[float, Range(ge=-1, le=1)]", float("nan"), "=nan: must be a finite number"),
    ("Annotated[int, Range(ge=1)] | None", 0, "=0: must be at least 1"),
    ("Annotated[float, Range(gt=0)]", float("inf"), "=inf: must be a finite number"),
    ("list[Annotated[int, Range(ge=1)]]", [64, 0], "=[64, 0]: must be at least 1"),
]


@pytest.mark.parametrize(("annotation", "value", "problem"), OUTSIDE)
def test_a_number_outside_its_range_is_refused_with_the_range(annotation, value, problem) -> None:
    assert known(annotation)
    got, told = coerce(annotation, value)
    assert got is value and told.startswith(problem)


def test_another_type_than_a_ranged_number_is_told_without_the_range() -> None:
    told = coerce("Annotated[int, Range(ge=1)] | None", "x")[1]
    assert told == ": must be int | None, got 'x' (str)"


@pytest.mark.parametrize(("annotation", "value", "expected"), FITS)
def test_a_fitting_value_is_taken_in_the_declared_type(annotation, value, expected) -> None:
    got, problem = coerce(annotation, value)
    assert problem == "" and got == expected and type(got) is type(expected)
    assert known(annotation)


@pytest.mark.parametrize(("annotation", "value"), REFUSED)
def test_another_type_is_refused_with_the_type_and_the_value(annotation, value) -> None:
    got, problem = coerce(annotation, value)
    assert got is value
    assert annotation in problem and ("null" in problem or repr(value) in problem)


def test_numbers_inside_a_list_are_converted_too() -> None:
    assert [type(x) for x in coerce("list[float]", [1, 2])[0]] == [float, float]


@pytest.mark.parametrize("annotation", ["Tensor", "torch.device", "list[Tensor]", "?", "int | Net"])
def test_what_yaml_cannot_carry_is_recognised(annotation) -> None:
    assert not known(annotation)


def test_digits_for_a_text_come_with_the_way_to_quote_them() -> None:
    assert "quote" in coerce("str | None", 7)[1]
