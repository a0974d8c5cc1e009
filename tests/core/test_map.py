"""The map of the package in docs/internals.md shows it as it is."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAP = runpy.run_path(str(ROOT / "docs" / "theme" / "map.py"))
PAGE = (ROOT / "docs" / "internals.md").read_text(encoding="utf-8")


def test_the_map_shows_every_module_with_what_it_says_of_itself():
    assert MAP["page_with"](MAP["map_of"](), PAGE) == PAGE, "run `python docs/theme/map.py`"


def test_a_module_that_is_not_on_the_map_is_seen(tmp_path):
    (tmp_path / "room").mkdir()
    (tmp_path / "__init__.py").write_text('"""A package."""\n')
    (tmp_path / "room" / "__init__.py").write_text('"""A room."""\n')
    before = MAP["map_of"](tmp_path)
    (tmp_path / "room" / "new.py").write_text('"""Something | new.\n\nAnd more of it.\n"""\n')
    after = MAP["map_of"](tmp_path)
    assert before != after
    assert "| `new.py` | Something \\| new. |" in after
    assert "### `room/`\n\nA room.\n" in after


def test_every_room_is_in_the_list_of_rooms():
    above = PAGE.partition("## How a probe")[0]
    tops = {room.partition("/")[0] for room in MAP["rooms"]() if room}
    assert {room for room in tops if f"`{room}/`" not in above} == set()
