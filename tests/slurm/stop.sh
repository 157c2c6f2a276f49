#!/usr/bin/env bash
# End what start.sh DIR started, jobs first: they would outlive their slurmd.
dir=${1:?folder}
export SLURM_CONF="$dir/slurm.conf"
scancel --state=PENDING,RUNNING,SUSPENDED --user=root 2>/dev/null
for _ in $(seq 60); do
	[ -z "$(squeue -h 2>/dev/null)" ] && break
	sleep 0.5
done
pids=$(cat "$dir"/slurmd-*.pid "$dir/slurmctld.pid" "$dir/munge/munged.pid" 2>/dev/null)
for pid in $pids; do
	kill "$pid" 2>/dev/null
	for _ in $(seq 40); do kill -0 "$pid" 2>/dev/null || break; sleep 0.25; done
done
for pid in $pids; do
	if kill -0 "$pid" 2>/dev/null; then echo "process $pid has not ended" >&2; exit 1; fi
done
