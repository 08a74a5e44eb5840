#!/usr/bin/env bash
# The pairs of training runs of "Changes without a gain" on the page of training benchmarks, one core, several hours:
#   pip install schedulefree && bash scripts/bench/changes.sh FOLDER
# FOLDER holds Task04_Hippocampus, ISBI2012_EM and DSB2018_nuclei.
set -euo pipefail
export OMP_NUM_THREADS=1
folder=$1
total='$@train#trainer#max_epochs * @steps_per_epoch'
trials=scripts.bench.trials

schedule="{_target_: torch.optim.lr_scheduler.PolynomialLR, optimizer: '@optimizer', total_iters: '$total', power: 0.9}"
constant="{_target_: torch.optim.lr_scheduler.ConstantLR, optimizer: '@optimizer', factor: 1.0}"
averaged="{_target_: $trials.schedule_free, params: '\$@network_def.parameters()', lr: '@learning_rate', steps: '$total'}"
dice="to_onehot_y: true, softmax: true, include_background: false, batch: true"
smoothed="{_target_: monai.losses.DiceCELoss, $dice, label_smoothing: 0.1}"

low=(--change 'low resolution first' 'first::augment::deform::scale_range=[0.45,0.55]')
training=(--change 'polynomial schedule' "lr_scheduler=$schedule"
  --change 'schedule-free AdamW' "optimizer=$averaged" learning_rate=0.01 "lr_scheduler=$constant")
losses=(--change 'label smoothing' "loss=$smoothed" --change 'boundary loss' "loss={_target_: $trials.BoundaryLoss}")
network=(--change 'residual levels' network_def::block=residual
  --change 'deep supervision' network_def::deep_supervision=1
  --change 'no elastic deformation' augment::deform::elastic_prob=0)

python -m scripts.bench.changes "$folder/Task04_Hippocampus" --name Task04_Hippocampus_training --steps 600 \
  --set 'network_def::channels=[8,16,32,64]' 'patch_size=[32,48,32]' batch_size=2 'contrast_steps=[]' \
  "${low[@]}" 'first::patch_size=[16,24,16]' first::batch_size=16 "${training[@]}" "${losses[@]}"
python -m scripts.bench.changes "$folder/ISBI2012_EM" --em --steps 480 \
  --set 'network_def::channels=[8,16,32,64,128]' batch_size=4 \
  "${low[@]}" 'first::patch_size=[128,128]' first::batch_size=16 "${training[@]}" "${losses[@]}" "${network[@]}"
python -m scripts.bench.changes "$folder/DSB2018_nuclei" --instances --name DSB2018 --steps 280 \
  --set 'network_def::channels=[8,16,32,64,128]' 'patch_size=[128,128]' batch_size=8 \
  "${low[@]}" 'first::patch_size=[64,64]' first::batch_size=32 "${training[@]}" "${network[@]}"
