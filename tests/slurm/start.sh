#!/usr/bin/env bash
# A SLURM of N nodes on this one machine, as root: munge, slurmctld and N slurmd, which write below DIR only.
#     tests/slurm/start.sh DIR [N] && export SLURM_CONF=DIR/slurm.conf PATH=DIR/bin:$PATH; tests/slurm/stop.sh DIR
# Ports PORT to PORT + N of 127.0.0.1 must be free (PORT=16817 unless it is set).
set -euo pipefail
dir=${1:?folder} nodes=${2:-2} port=${PORT:-16817} host=$(hostname -s)
mkdir -p "$dir"/{munge,state,log}
chmod 0711 "$dir/munge"
head -c 1024 /dev/urandom > "$dir/munge/munge.key"
chmod 0400 "$dir/munge/munge.key"
munged --force --key-file="$dir/munge/munge.key" --socket="$dir/munge/munge.sock" --pid-file="$dir/munge/munged.pid" \
	--log-file="$dir/log/munged.log" --seed-file="$dir/munge/munged.seed"
cat > "$dir/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge/munge.sock
CredType=cred/munge
SlurmctldPort=$port
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1
MpiDefault=none
ReturnToService=2
KillWait=5
SlurmdParameters=config_overrides
$(for i in $(seq "$nodes"); do echo "NodeName=n$i NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + i)) CPUs=2 RealMemory=2000"; done)
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
mkdir -p "$dir/bin"
cat > "$dir/bin/sacct" <<'SH'
#!/bin/sh
# In place of sacct, which would ask a database: submitit learns from it that a job has ended without a word.
echo 'JobID|State|NodeList'
exec squeue --noheader --array --states=all --format='%i|%T|%N'
SH
chmod +x "$dir/bin/sacct"
export SLURM_CONF="$dir/slurm.conf"
slurmctld -f "$SLURM_CONF"
for i in $(seq "$nodes"); do
	mkdir -p "$dir/spool-n$i"
	slurmd -f "$SLURM_CONF" -N "n$i"
done
for _ in $(seq 60); do
	if [ "$(sinfo -h -N -o %t 2>/dev/null | grep -cx idle)" = "$nodes" ]; then exit 0; fi
	sleep 0.5
done
echo "the nodes do not come up; $dir/log says why" >&2
exit 1
