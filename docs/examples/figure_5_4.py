"""Figure 5.4 from code: what trained biases recover of what freezing costs, as figure_5_4.png."""

from sharedenc import report

study = report.load("published")  # or the name of a study on the server
table = study.figure("5.4")
bars = table.pivot(index="backbone", columns="strategy", values="mIoU recovered (pp)")
axes = bars.loc[table["backbone"].unique()].plot.bar(rot=0, figsize=(7, 3))
axes.set_title(table.attrs["title"])
axes.set_ylabel("percentage points of\nthe baseline's mIoU")
axes.set_xlabel("")
axes.figure.tight_layout()
axes.figure.savefig("figure_5_4.png", dpi=300)
