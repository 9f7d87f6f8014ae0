#!/bin/sh
# Stands in for the program: logs its configuration (`run --config FILE`), ends with code 3 at SIGTERM, and with code 4
# once there is a file `end`.
trap 'exit 3' TERM
cat "$3"
until [ -e end ]; do sleep 0.1; done
exit 4
