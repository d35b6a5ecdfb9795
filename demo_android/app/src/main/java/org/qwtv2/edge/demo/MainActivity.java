package org.qwtv2.edge.demo;

import android.content.ActivityNotFoundException;
import android.content.ClipData;
import android.content.Context;
import android.content.Intent;
import android.graphics.Bitmap;
import android.graphics.drawable.BitmapDrawable;
import android.net.Uri;
import android.os.Bundle;
import android.view.View;
import android.widget.CompoundButton;
import android.widget.ImageView;
import android.widget.TextView;
import android.widget.Toast;
import androidx.activity.EdgeToEdge;
import androidx.activity.result.ActivityResultCallback;
import androidx.activity.result.ActivityResultLauncher;
import androidx.activity.result.PickVisualMediaRequest;
import androidx.activity.result.contract.ActivityResultContracts;
import androidx.appcompat.app.AppCompatActivity;
import androidx.appcompat.widget.Toolbar;
import androidx.core.content.ContextCompat;
import androidx.core.content.FileProvider;
import androidx.lifecycle.Observer;
import androidx.lifecycle.ViewModelProvider;
import java.io.File;

/** Shows one network in two formats, side by side. */
public final class MainActivity extends AppCompatActivity {
    private static final String FILES = "org.qwtv2.edge.demo.files";
    private static final int[] CARDS = {R.id.first_format, R.id.second_format};

    /** Lets the camera app write the picture, which Android 18 no longer does by itself. */
    private static final class TakePicture extends ActivityResultContracts.TakePicture {
        @Override
        public Intent createIntent(Context context, Uri uri) {
            Intent intent = super.createIntent(context, uri);
            intent.setClipData(ClipData.newRawUri("", uri));
            intent.addFlags(Intent.FLAG_GRANT_READ_URI_PERMISSION | Intent.FLAG_GRANT_WRITE_URI_PERMISSION);
            return intent;
        }
    }

    private MainViewModel model;
    private ActivityResultLauncher<PickVisualMediaRequest> gallery;
    private ActivityResultLauncher<Uri> camera;

    @Override
    protected void onCreate(Bundle saved) {
        super.onCreate(saved);
        EdgeToEdge.enable(this);
        setContentView(R.layout.activity_main);
        setSupportActionBar(this.<Toolbar>findViewById(R.id.toolbar));
        model = new ViewModelProvider(this).get(MainViewModel.class);
        gallery = registerForActivityResult(new ActivityResultContracts.PickVisualMedia(), new ActivityResultCallback<Uri>() {
            @Override
            public void onActivityResult(Uri uri) {
                if (uri != null) { // null: the user went back
                    model.runPhoto(uri, inverted());
                }
            }
        });
        camera = registerForActivityResult(new TakePicture(), new ActivityResultCallback<Boolean>() {
            @Override
            public void onActivityResult(Boolean taken) {
                if (taken) {
                    model.runPhoto(photo(), inverted());
                }
            }
        });
        onClick(R.id.take_photo, new Runnable() {
            @Override
            public void run() {
                camera.launch(photo());
            }
        });
        onClick(R.id.pick_photo, new Runnable() {
            @Override
            public void run() {
                gallery.launch(new PickVisualMediaRequest.Builder()
                        .setMediaType(ActivityResultContracts.PickVisualMedia.ImageOnly.INSTANCE)
                        .build());
            }
        });
        onClick(R.id.next_sample, new Runnable() {
            @Override
            public void run() {
                model.runSample();
            }
        });
        model.state().observe(this, new Observer<State>() {
            @Override
            public void onChanged(State state) {
                show(state);
            }
        });
    }

    /** Where the camera app puts its picture: always the same file, so that it is found again whatever happened to this process. */
    private Uri photo() {
        File folder = new File(getCacheDir(), "camera");
        if (!folder.isDirectory() && !folder.mkdir()) {
            throw new IllegalStateException("can't create " + folder);
        }
        return FileProvider.getUriForFile(this, FILES, new File(folder, "photo.jpg"));
    }

    private boolean inverted() {
        return ((CompoundButton) findViewById(R.id.invert)).isChecked();
    }

    private void onClick(int id, final Runnable action) {
        findViewById(id).setOnClickListener(new View.OnClickListener() {
            @Override
            public void onClick(View view) {
                try {
                    action.run();
                } catch (ActivityNotFoundException error) {
                    Toast.makeText(MainActivity.this, R.string.no_app, Toast.LENGTH_LONG).show();
                }
            }
        });
    }

    private void show(State state) {
        boolean works = state.problem.isEmpty();
        boolean idle = state.busy.isEmpty();
        setTitle(state.title.isEmpty() ? getString(R.string.app_name) : state.title);
        showText(R.id.problem, state.problem);
        visible(R.id.content, works);
        visible(R.id.progress, !idle);
        showText(R.id.busy, state.busy);
        showText(R.id.notice, state.notice);
        showText(R.id.caption, state.caption);
        showText(R.id.agreement, state.agreement);
        visible(R.id.agreement_title, !state.agreement.isEmpty());
        visible(R.id.take_photo, state.takesPhotos);
        visible(R.id.pick_photo, state.takesPhotos);
        visible(R.id.invert, state.grey);
        for (int id : new int[] {R.id.take_photo, R.id.pick_photo, R.id.next_sample}) {
            findViewById(id).setEnabled(idle && works);
        }
        showPicture(state.picture);
        for (int i = 0; i < CARDS.length; i++) {
            visible(CARDS[i], i < state.formats.size());
            if (i < state.formats.size()) {
                showFormat(findViewById(CARDS[i]), state.formats.get(i));
            }
        }
    }

    private void showPicture(Bitmap bitmap) {
        ImageView view = findViewById(R.id.picture);
        view.setVisibility(bitmap == null ? View.GONE : View.VISIBLE);
        if (bitmap != null) {
            BitmapDrawable drawable = new BitmapDrawable(getResources(), bitmap);
            drawable.setFilterBitmap(false); // small inputs show their pixels
            view.setImageDrawable(drawable);
        }
    }

    private void showFormat(View card, State.Format format) {
        ((TextView) card.findViewById(R.id.format_title)).setText(format.title);
        ((TextView) card.findViewById(R.id.format_text)).setText(format.text);
        TextView badge = card.findViewById(R.id.format_badge);
        badge.setText(format.badgeText);
        badge.setVisibility(format.badgeText.isEmpty() ? View.GONE : View.VISIBLE);
        int colour = format.badge == State.Format.Badge.EXACT
                ? R.color.exact
                : format.badge == State.Format.Badge.DIFFERS ? R.color.differs : R.color.unknown;
        badge.setTextColor(ContextCompat.getColor(this, colour));
    }

    private void showText(int id, String text) {
        ((TextView) findViewById(id)).setText(text);
        visible(id, !text.isEmpty());
    }

    private void visible(int id, boolean visible) {
        findViewById(id).setVisibility(visible ? View.VISIBLE : View.GONE);
    }
}
