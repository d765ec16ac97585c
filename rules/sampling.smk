# Predicted tokens of the evaluation set: one rule per trained run, one for all closed-form baselines.

for job in jobs_of("sample"):

    rule:
        name:
            job.name
        input:
            job.input_manifests,
        output:
            job.manifests,
        log:
            PLAN.places.log(job.name),
        priority: job.priority
        conda:
            "../envs/flowkit.yaml"
        threads: 1
        resources:
            mem_mb=job.memory_mb,
            runtime=job.runtime_minutes,
        params:
            *job.tracked,
            spec=spec_of(job),
        message:
            job.name
        shell:
            command("sample")


for job in jobs_of("baselines"):

    rule:
        name:
            job.name
        input:
            job.input_manifests,
        output:
            job.manifests,
        log:
            PLAN.places.log(job.name),
        priority: job.priority
        conda:
            "../envs/flowkit.yaml"
        threads: 1
        resources:
            mem_mb=job.memory_mb,
            runtime=job.runtime_minutes,
        params:
            *job.tracked,
            spec=spec_of(job),
        message:
            job.name
        shell:
            command("baselines")
