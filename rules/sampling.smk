# Predicted tokens of the evaluation set: one rule per trained run, one for all closed-form baselines.

for job in jobs_of("sample", "baselines"):

    rule:
        name:
            job.name
        input:
            job.declared_inputs,
        output:
            job.manifests,
        log:
            PLAN.places.log(job.name),
        priority: job.priority
        conda:
            "../envs/flowkit.yaml"
        threads: job.threads
        resources:
            mem_mb=job.memory_mb,
            runtime=job.runtime_minutes,
        params:
            *job.tracked,
            stage=job.spec.stage,
            spec=spec_of(job),
        message:
            job.name
        shell:
            COMMAND
