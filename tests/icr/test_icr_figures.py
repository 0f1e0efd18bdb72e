"""The figure of errors by number of examples."""

from math import nan

from zoo.icr.figures import plot_error_curves


def test_legends_list_the_curves_that_are_drawn_in_each_panel():
    curves = {
        "pretrain": {"transformer": [3.0, 2.0], "ridge": [2.0, 1.0], "dmmse": [1.0, 0.5], "least_squares": [9.0, nan]},
        "true": {"transformer": [3.0, 2.0], "ridge": [2.0, 1.0], "dmmse": [nan, nan], "least_squares": [nan, 2.0]},
    }
    names = []
    figure = plot_error_curves(curves, "M = 4")
    assert figure.get_size_inches()[0] < 5  # TensorBoard shows it with 350 pixels
    for axes in figure.axes:
        lines = axes.get_lines()
        assert [text.get_text() for text in axes.get_legend().get_texts()] == [line.get_label() for line in lines]
        assert len({line.get_linestyle() for line in lines}) == len(lines)  # equal curves can be told apart
        assert axes.get_ylim()[1] == 4.5  # least squares does not set the limit
        names.append([line.get_label() for line in lines])
    assert names == [["transformer", "ridge", "dMMSE", "least squares"], ["transformer", "ridge", "least squares"]]
