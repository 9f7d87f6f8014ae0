#!/bin/sh
# Stands in for the program: logs its configuration (`run --config FILE`), leaves a file, ends at SIGTERM with code 3.
trap 'exit 3' TERM
cat "$3"
touch stored
while :; do sleep 0.1; done
