import pytest

from edge_client.hours import read_hours


def test_spans_may_cross_midnight_and_be_several() -> None:
    hours = read_hours("22:00-06:00, 12:30-13:30")

    assert [hours.include(60 * hour + minute) for hour, minute in ((21, 59), (22, 0), (0, 0), (5, 59), (6, 0))] == [
        *(False, True, True, True, False)
    ]
    assert hours.include(13 * 60)
    assert not hours.include(13 * 60 + 30)
    assert str(hours) == "22:00-06:00,12:30-13:30"
    assert all(read_hours("00:00-24:00").include(minute) for minute in range(1440))


@pytest.mark.parametrize("text", ["", "22-6", "22:00-25:00", "24:01-01:00", "08:00-08:00", "22:00-06:00,"])
def test_what_are_no_hours_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        read_hours(text)
