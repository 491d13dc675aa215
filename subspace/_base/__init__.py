"""What everything else is built on: keys, plug-ins, layouts, transforms, operators, files. Imports nothing above."""
