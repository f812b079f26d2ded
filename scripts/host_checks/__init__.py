"""Run hosts' own, unmodified code with and without us, with stand-ins for the weights only.

    python -m scripts.host_checks --hosts FOLDER [--minutes M | --pictures FOLDER] [NAME ...]

`--hosts` is a folder with checkouts of the hosts under the names of their repositories. Every check
runs in a process of its own, prints one line of figures for each thing that it ran, and fails where
one of its statements does not hold. Packages that a host imports and that are missing here (a web
server, speech synthesis) are replaced by empty modules; networks by ones that return the face that
they were given, softened.

With `--minutes` the live loops of MuseTalk and LiveTalking run for so long; see `live`. With
`--pictures` each check compares nothing, and writes a frame without and with us as NAME.jpg: the
lower face at full size, of a talking head made of scikit-image's astronaut (NASA, public domain),
softened to 96 px.
"""
