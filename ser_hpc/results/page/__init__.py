"""Make report.html: one page without scripts and without anything from the network, so that it can be kept, mailed and printed.

page                 what stands on it: the tables of report.md, and figures
template             how it is laid out: a Jinja2 template, which escapes every text
style                how it looks: light, dark, on a phone, on paper
"""
