# Token stores, one per tar and encoder, their conversion to int8, and the table that pairs their rows.

for job in jobs_of("extract", "convert", "pairs"):

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
