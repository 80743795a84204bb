"""What ``trainer.cli`` puts together: commands about data, figures and weight files, the demo,
tables of what there is.
"""
