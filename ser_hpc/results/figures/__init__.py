"""Draw a report's figures, once for the page and for papers.

shapes               what a figure is made of: lines, boxes, dots, text, in colours by their role
scales               where a number lies on an axis, and its ticks
dot_plot, confusion_matrix, learning, reliability_diagram   one file a figure
sound                the waveform and the spectrogram of a clip
svg, pdf             one file a format; pdf needs matplotlib (the extra `figures`)
run_figures          all figures of a run, for its page and as files
"""
