"""What a Jetson board says about itself in /proc, /sys, /etc and /var; all of it without root.

Every reader takes `sysroot`, so that tests can show it the files of another machine. A file that
is not there, cannot be read or holds rubbish gives None or nothing, never zero and no error.
"""
