from tests.faults import document


def test_the_page_says_what_happens():
    assert document.FILE.read_text() == document.text(), "python -m tests.faults.document writes it anew"


def test_rows_have_names_of_their_own():
    for _, _, rows in document.TABLES:
        names = [(row.tried, row.options) for row in rows if not row.tried.startswith("the same")]
        assert all(names.count(name) == 1 for name in names)
    commands = [row.tried for _, _, rows in document.COMMANDS for row in rows]
    assert len(set(commands)) == len(commands)
